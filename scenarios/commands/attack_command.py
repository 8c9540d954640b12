"""`casam attack`: what a finished run gives away about the images that it learned from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from casam_core.errors import RunError
from casam_core.files import write_atomic
from scenarios.commands.terminal import console


def attack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="Write {institution: {task: {attack: {figure: value}}}} to this file."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that relative data paths start from, as for `casam run`.")
    ] = None,
    institution: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one (repeatable); needed where a real institution's images are at hand."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shadow layers to train per entry, an even number; each costs one training. 0: leave out "
            "the layer's likelihood ratio.",
        ),
    ] = 4,
) -> None:
    """Try to tell which images an institution's entries were learned from.

    Members are its training images, non-members its validation and test images. The figures are made from
    these images: they are the institution's to keep or to publish. Exits 1 if a claimed epsilon is refuted.
    """
    from casam_bench.membership.attack_run import (
        AttackError,
        attack_run,
        broken_claims,
        open_run,
        refusals,
        table_of,
    )
    from scenarios.engines.live import LineWriter, live_view

    if shadows % 2:
        raise AttackError(f"--shadows: expected an even number, found {shadows}")
    if json_ is not None and not json_.parent.is_dir():
        raise AttackError(f"--json: expected the folder {json_.parent} to exist; make it first")

    screen = console()
    opened = open_run(run.expanduser().resolve(), data_root)
    with live_view(screen) as show, contextlib.redirect_stdout(LineWriter(show)):
        report = attack_run(opened, institution or [], shadows)
    screen.print(table_of(report))
    for line in refusals(report):
        screen.print(f"not attacked: {line}", highlight=False, soft_wrap=True)
    if json_ is not None:
        write_atomic(json_, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    if broken := broken_claims(report):
        raise RunError(f"a claimed epsilon does not hold. {'; '.join(broken)}")
