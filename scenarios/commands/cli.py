"""The `casam` command."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from click.exceptions import Abort, ClickException, NoArgsIsHelpError, UsageError

from casam_core.errors import CasamError, ScenarioError
from scenarios.commands.attack_command import attack
from scenarios.commands.audit_commands import audit_app, ledger_app
from scenarios.commands.bank_commands import bank_app, predict, predict_volume
from scenarios.commands.bench_command import bench
from scenarios.commands.data_commands import data_app
from scenarios.commands.deploy_commands import bundle_app, deploy_app, gateway, node, provision
from scenarios.commands.report_commands import card, export, report, studio, watch
from scenarios.commands.scenario_commands import init, scenarios_app, schema, studies_app
from scenarios.commands.site_commands import site_app
from scenarios.commands.study_command import ask, compare, study
from scenarios.commands.terminal import (
    SCENARIO,
    STOPPED,
    DataRoot,
    Json,
    NewRun,
    OfKeys,
    at_ctrl_c,
    print_json,
)
from scenarios.engines import Engine
from scenarios.printing import console, say

EXIT_STATUS = "Exit status of every command: 0 done, 1 a check or a run failed, 2 bad input, 130 stopped."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click suggests already
    help="Simulate institutions that adapt one SAM model task by task, without pooling images.",
    epilog=f"Start with: casam doctor, then casam run quickstart\n\n{EXIT_STATUS}",
)

FAILED, BAD_INPUT = 1, 2

DISK_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
"""Faults of the machine or of a path, not of the program: the disk is full or read-only, access is denied, a
name is too long or stands for something else."""

EXTRAS = {
    "deploy": ("packaging", "starlette", "tomli_w", "uvicorn"),
    "onnx": ("onnx", "onnxscript"),
    "report": ("altair", "jinja2", "markupsafe", "vl_convert"),
    "simulation": ("ray",),
    "studio": ("jinja2", "markupsafe", "starlette", "uvicorn"),
    "study": ("altair", "pandas", "pyarrow", "vl_convert"),
}
"""By extra: the modules that its commands need. Some belong to several extras."""


def main() -> None:
    """Entry point. A fault prints one line on stderr.

    Exit status: 0 done, 1 a check or a run failed, 2 bad input, 130 stopped with Ctrl-C.
    """
    # Opacus recommends more orders of the Rényi divergence; the bound holds at every order.
    warnings.filterwarnings("ignore", "Optimal order is the largest alpha")
    try:
        with at_ctrl_c(lambda: "stopped"):
            status = app(standalone_mode=False)
        sys.exit(status)
    except KeyboardInterrupt:  # at_ctrl_c has told it
        sys.exit(STOPPED)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except Abort:  # the input ended where a question was asked
        print("error: a question had no answer; nothing was done", file=sys.stderr)
        sys.exit(FAILED)
    except ClickException as error:
        command = error.ctx.command_path if isinstance(error, UsageError) and error.ctx else "casam"
        said = error.format_message().rstrip(".")
        print(f"error: {command}: {said}; see {command} --help", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except CasamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except ModuleNotFoundError as error:
        if (advice := advice_for(error)) is None:
            raise
        print(f"error: {advice}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        then = getattr(error, "__notes__", ["then try again"])[0]
        advice = f"check the path, make room or choose another folder; {then}"
        print(f"error: {where}{error.strerror}; {advice}", file=sys.stderr)
        sys.exit(FAILED)


def advice_for(missing: ModuleNotFoundError) -> str | None:
    """One line that names the extra to install; None for a module that belongs to no extra."""
    module = (missing.name or "").partition(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if module in modules]
    if not extras:
        return None
    named = " or ".join(repr(extra) for extra in extras)
    return (
        f"expected the packages of the extra {named}, found that {module} cannot be imported; "
        f"run: pip install 'casam[{','.join(extras)}]'"
    )


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


def run(
    scenario: Annotated[str | None, SCENARIO] = None,
    data_root: DataRoot = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File of the backbone's weights, for the official SAMs.")
    ] = None,
    out: NewRun = None,
    set_: OfKeys = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="simulation (default): a real `flwr run`. inprocess: one process, with the same figures."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of --engine inprocess; the figures stay the same. Default: 1."),
    ] = None,
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
    from casam_core.config.library import resolve_scenario
    from scenarios.engines.order import RunOrder, choose_folder, data_folder, resumable, weights_at

    screen = console()
    if resume is not None:
        given = [scenario, data_root, checkpoint, out, ledger_dir, set_, engine, workers]
        if any(value is not None for value in given):
            raise ScenarioError("--resume: a run continues with its first settings; give only the run folder")
        folder = resumable(resume)
        say(screen, f"{folder.name}: continues")
        with telling_how_to_continue(folder):
            with screen.status("loading the libraries"):
                from scenarios.engines.run import resume_run, show_results
            show_results(resume_run(folder, screen), screen)
        return
    if scenario is None:
        raise ScenarioError("run: expected a scenario or --resume RUN, found neither; see `casam scenarios`")
    if workers is not None and engine is not Engine.inprocess:
        raise ScenarioError(
            "--workers: expected --engine inprocess; the simulation starts as many workers as there are cores"
        )
    engine = engine or Engine.simulation
    settings = [*weights_at(checkpoint), *(set_ or [])]
    resolved, root = resolve_scenario(scenario, settings), data_folder(data_root)
    folder = choose_folder(resolved, out)
    tasks, sites = len(resolved.stream), len(resolved.institutions)
    say(screen, f"{resolved.name}: {tasks} tasks, {sites} institutions, engine {engine.value}; starts")
    with telling_how_to_continue(folder):
        with screen.status("loading the libraries"):
            from scenarios.engines.run import run_scenario, show_results
        order = RunOrder(engine, root, folder, ledger_dir, workers or 1)
        show_results(run_scenario(resolved, order, screen), screen)


@contextlib.contextmanager
def telling_how_to_continue(folder: Path) -> Iterator[None]:
    """During the block, Ctrl-C and a fault of the disk say what to do next with the run."""
    with at_ctrl_c(lambda: how_to_continue(folder)):
        try:
            yield
        except OSError as error:
            error.add_note(how_to_continue(folder))
            raise


def how_to_continue(folder: Path) -> str:
    """What to do after a run was stopped."""
    if (folder / "order.json").is_file() and (folder / "scenario.json").is_file():
        return f"stopped; to continue: casam run --resume {folder}"
    if folder.is_dir() and any(folder.iterdir()):
        return f"stopped before the first stage; {folder} is not empty, so start again with another --out"
    return "stopped before the first stage; to start again, give the same command"


def doctor(json_: Json = False) -> None:
    """Check this machine: versions, weights, devices, disk. Exits with 1 if something must be repaired."""
    from scenarios.inspection.doctor import check_environment

    findings = check_environment()
    if json_:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<20} {finding.detail}")
            if not finding.ok:
                typer.echo(f"      {'':<20} {finding.advice}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


GROUPS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start here": {
        "doctor": doctor,
        "run": run,
        "watch": watch,
        "report": report,
        "studio": studio,
    },
    "Your own data": {"data": data_app, "init": init, "schema": schema},
    "Scenarios and studies": {
        "scenarios": scenarios_app,
        "studies": studies_app,
        "study": study,
        "compare": compare,
        "ask": ask,
    },
    "Use the results": {
        "predict": predict,
        "predict-volume": predict_volume,
        "bank": bank_app,
        "card": card,
        "export": export,
    },
    "An institution": {"site": site_app, "node": node, "audit": audit_app, "ledger": ledger_app},
    "A deployment": {"deploy": deploy_app, "provision": provision, "gateway": gateway, "bundle": bundle_app},
    "Proofs": {"attack": attack, "bench": bench},
}
"""Every command, in the order and under the titles of `casam --help`."""

for title, found in GROUPS.items():
    for name, command in found.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=title)
        else:
            app.command(name, rich_help_panel=title)(command)


def unwrap(commands: typer.Typer) -> None:
    """Let help texts end their lines where the terminal's end, not also where the docstring's do."""
    for command in commands.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for inner in commands.registered_groups:
        if inner.typer_instance is not None:
            unwrap(inner.typer_instance)


unwrap(app)
