"""`casam export`: the curves of finished runs for TensorBoard or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_STUDY...", help="Run folders, or folders of studies and comparisons."),
    ],
    to: Annotated[str, typer.Option(help="tensorboard or mlflow.")],
    out: Annotated[Path, typer.Option(help="Folder of the tool's files; runs can be added to it later.")],
) -> None:
    """Write IoU by task, epsilon and bytes by institution over the stages, for another tool to show.

    Needs an extra: pip install 'casam[tensorboard]' or 'casam[mlflow]'. Only the server's files are read.
    """
    from casam_core.errors import ExportError
    from scenarios.commands.terminal import console
    from scenarios.export import SINKS
    from scenarios.export.curves import curves_of
    from scenarios.report.reading import read_all

    if to not in SINKS:
        raise ExportError(f"--to: expected one of {', '.join(SINKS)}, found {to!r}")
    out = out.expanduser()
    screen = console()
    with screen.status("reading") as status:
        found = read_all(runs, lambda done, total: status.update(f"reading run {done} of {total}"))
        try:
            for done, run in enumerate(found.runs, 1):
                status.update(f"writing run {done} of {len(found.runs)}")
                SINKS[to](curves_of(run), out)
        except OSError as error:
            raise ExportError(f"--out: {out} cannot be written: {error.strerror}; choose another") from error
    if found.skipped:
        screen.print(f"Left out, not finished: {', '.join(found.skipped)}", highlight=False, soft_wrap=True)
    count = f"{len(found.runs)} run{'s' if len(found.runs) != 1 else ''}"
    screen.print(f"{count} for {to}: {out.resolve()}", highlight=False, soft_wrap=True)
