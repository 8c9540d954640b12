"""`casam bench`: the measurements that the documentation quotes, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from casam_core.errors import ScenarioError
from casam_core.files import write_atomic
from scenarios.screen import console


def bench(
    name: Annotated[str | None, typer.Argument(help="A benchmark; without one they are listed.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run every benchmark.")] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write {benchmark: {figure: number}} to this file.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder for what is encoded once. Default: below $CASAM_HOME.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=8, help="Leave out rows with more training images per task, to save hours.")
    ] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
) -> None:
    """Run one benchmark or all. Images are encoded once and kept, at about a second each."""
    from benchmarks import BENCHMARKS
    from benchmarks.bench import Surroundings
    from casam_core.home import casam_home

    if name is None and not all_:
        for known, benchmark in BENCHMARKS.items():
            typer.echo(f"{known:<12} {benchmark.description}")
        return
    if name is not None and name not in BENCHMARKS:
        raise ScenarioError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, found {name!r}")
    screen = console()
    around = Surroundings(
        home=home if home is not None else casam_home() / "bench",
        images=images,
        threads=threads,
        say=lambda line: screen.print(line, highlight=False),
        show=screen.print,
    )
    wanted = [name] if name is not None else list(BENCHMARKS)
    figures = {benchmark: BENCHMARKS[benchmark].run(around) for benchmark in wanted}
    if json_ is not None:
        write_atomic(json_, (json.dumps(figures, indent=2) + "\n").encode())
