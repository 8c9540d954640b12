"""The `casam` command."""

from __future__ import annotations

import errno
import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from casam_core.errors import CasamError, RunError, ScenarioError
from scenarios.commands.attack_command import attack
from scenarios.commands.audit_commands import audit_app, ledger_app
from scenarios.commands.bank_commands import bank_app, predict
from scenarios.commands.bench_command import bench
from scenarios.commands.data_commands import data_app
from scenarios.commands.deploy_commands import bundle_app, deploy_app, gateway, node, provision
from scenarios.commands.report_commands import export, report, watch
from scenarios.commands.scenario_commands import init, scenarios_app, schema, studies_app
from scenarios.commands.site_commands import site_app
from scenarios.commands.study_command import compare, study
from scenarios.commands.terminal import console
from scenarios.engines import Engine

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Simulate institutions that adapt one SAM model task by task, without pooling images.",
    epilog="Start with: casam doctor, then casam run quickstart",
)
app.add_typer(audit_app, name="audit")
app.add_typer(ledger_app, name="ledger")
app.add_typer(bank_app, name="bank")
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
app.add_typer(bundle_app, name="bundle")
app.add_typer(site_app, name="site")
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(studies_app, name="studies")

BAD_INPUT, FAILED_RUN, INTERRUPTED = 2, 1, 130

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Faults of the machine, not of the program: the disk is full or read-only, or access is denied."""

EXTRAS = {
    "deploy": ("packaging", "starlette", "tomli_w", "uvicorn"),
    "report": ("altair", "jinja2", "markupsafe", "vl_convert"),
    "simulation": ("ray",),
    "study": ("matplotlib", "pandas", "pyarrow"),
}
"""By extra: the modules that only this extra installs."""


def main() -> None:
    """Entry point. Bad input prints one line on stderr and exits with 2; a failed run exits with 1."""
    try:
        app()
    except CasamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED_RUN if isinstance(error, RunError) else BAD_INPUT)
    except ModuleNotFoundError as error:
        if (advice := advice_for(error)) is None:
            raise
        print(f"error: {advice}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror}; make room or choose another folder, then try again "
            "(`casam run --resume RUN` continues an interrupted run)",
            file=sys.stderr,
        )
        sys.exit(FAILED_RUN)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def advice_for(missing: ModuleNotFoundError) -> str | None:
    """One line that names the extra to install; None for a module that belongs to no extra."""
    module = (missing.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return (
                f"expected the packages of the extra {extra!r}, found that {module} cannot be imported; "
                f"run: pip install 'casam[{extra}]'"
            )
    return None


def show_version(wanted: bool) -> None:
    """`casam --version`"""
    if wanted:
        typer.echo(f"casam {importlib.metadata.version('casam')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def run(
    scenario: Annotated[
        str | None, typer.Argument(help="A name that `casam scenarios` lists, or a path to a .toml file.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Base folder of the scenario's relative data paths.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (new or empty). Default: runs/<scenario>-<time>.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. --set training.epochs=3."),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="simulation: a real `flwr run`. inprocess: one process, with the same figures."),
    ] = Engine.simulation,
    ledger_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of privacy ledgers to continue. Default: each run starts with new ones."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue an interrupted run with the settings of its start; accepts no other option.",
        ),
    ] = None,
) -> None:
    """Run a scenario. The last line printed is the run folder.

    For example: casam run quickstart --set training.epochs=3

    Exit status: 0 the run completed, 1 it failed, 2 the input is bad (and no file was written).
    """
    from scenarios.engines.run import RunOrder, resume_run, run_scenario, show_results

    screen = console()
    if resume is not None:
        given = [scenario, data_root, out, ledger_dir, set_]
        if any(value is not None for value in given):
            raise ScenarioError("--resume: a run continues with its first settings; give only the run folder")
        show_results(resume_run(resume, screen), screen)
        return
    if scenario is None:
        raise ScenarioError("run: expected a scenario or --resume RUN, found neither; see `casam scenarios`")
    order = RunOrder(scenario, engine, data_root, out, ledger_dir, set_ or [])
    show_results(run_scenario(order, screen), screen)


app.command()(node)
app.command()(gateway)
app.command()(provision)
app.command()(predict)
app.command()(bench)
app.command()(attack)
app.command()(study)
app.command()(compare)
app.command()(watch)
app.command()(init)
app.command()(schema)
app.command()(report)
app.command()(export)


@app.command()
def doctor() -> None:
    """Check this machine: versions, weights, devices, disk. Exits with 1 if something must be repaired."""
    from scenarios.inspection.doctor import check_environment

    findings = check_environment()
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<20} {finding.detail}")
        if not finding.ok:
            typer.echo(f"      {'':<20} {finding.advice}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
