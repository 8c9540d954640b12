"""`casam report`: one page to look at, about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FULL_UP_TO = 6


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_STUDY...", help="Run folders, or folders of studies and comparisons."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page. Default: report.html in the folder, or here where there are several."),
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--brief",
            help=f"Every run's own part, or the comparison alone. Default: full up to {FULL_UP_TO} runs.",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page: figures, charts, privacy ledger, timeline, how to reproduce.

    Several runs stand side by side with their differences. The page works offline, asks for nothing, and
    reads only the server's files of a run folder.
    """
    from casam_core.errors import RunError
    from casam_core.files import write_atomic
    from scenarios.commands.terminal import console
    from scenarios.report.page import page
    from scenarios.report.reading import read_all

    target = (out or (runs[0] if len(runs) == 1 else Path()) / "report.html").expanduser()
    if target.suffix != ".html":
        raise RunError(f"--out: expected a file that ends in .html, found {target}")
    screen = console()
    with screen.status("reading") as status:
        found = read_all(runs, lambda done, total: status.update(f"reading run {done} of {total}"))
        whole = len(found.runs) <= FULL_UP_TO if full is None else full
        html = page(found, full=whole, progress=lambda what: status.update(f"drawing: {what}"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, html.encode())
    except OSError as error:
        raise RunError(f"--out: {target} cannot be written: {error.strerror}; choose another") from error
    if len(found.runs) > 1 and not whole:
        screen.print(f"The comparison of {len(found.runs)} runs; --full adds each run's own part.")
    if found.skipped:
        screen.print(f"Left out, not finished: {', '.join(found.skipped)}", highlight=False, soft_wrap=True)
    screen.print(f"Report: {target.resolve()}", highlight=False, soft_wrap=True)
