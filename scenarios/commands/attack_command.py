"""`casam attack`: what a finished run reveals about its training images."""

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
        Path | None, typer.Option(help="Base folder of relative data paths, as for `casam run`.")
    ] = None,
    institution: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack only this institution (repeatable). Required for a run of a real deployment."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shadow layers to train per entry, an even number; each costs one training. 0: no "
            "likelihood-ratio attack on the layer.",
        ),
    ] = 4,
) -> None:
    """Measure how well an attacker can tell an institution's training images from its other images.

    For example: casam attack RUN --shadows 0

    Members are its training images; non-members are its validation and test images. The figures depend on
    these images, so the institution decides about their publication. Exits with 1 if the attack refutes a
    claimed epsilon.
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
        raise AttackError(f"--json: expected the folder {json_.parent} to exist; create it first")

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
