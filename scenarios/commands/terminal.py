"""How commands print, wait and stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Protocol

import typer

from casam_core.errors import ScenarioError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""The option of commands that print facts."""

SCENARIO = typer.Argument(help="A name that `casam scenarios` lists, or a path to a .toml file.")
OfScenario = Annotated[str, SCENARIO]
DataRoot = Annotated[Path | None, typer.Option(help="Base folder of the scenario's relative data paths.")]
NewRun = Annotated[
    Path | None, typer.Option(help="Run folder (new or empty). Default: runs/<scenario>-<time>.")
]
OfKeys = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. --set training.epochs=3."),
]
"""Options that several commands have."""


def needs_folder(option: str, path: Path | None) -> None:
    """Raise ScenarioError, before any work, if the folder of a file to write is missing."""
    if path is not None and not path.parent.is_dir():
        raise ScenarioError(f"{option}: expected the folder {path.parent} to exist; create it first")


def print_json(facts: object) -> None:
    """Print facts as one JSON document."""
    typer.echo(json.dumps(facts, indent=2))


STOPPED = 130
"""The exit status after Ctrl-C."""


@contextlib.contextmanager
def at_ctrl_c(words: Callable[[], str]) -> Iterator[None]:
    """During the block, the first Ctrl-C prints these words and ends the work in order; a second one ends
    the command at once. An error that a library makes of the first one is no error."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, lambda *again: os._exit(STOPPED))
        print(f"\n{words()} (Ctrl-C again ends it at once)", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception as error:
        if stopped.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, before)


class Listed(Protocol):
    """A scenario or a study."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def look_at(self) -> str: ...


def listing(items: Sequence[Listed]) -> Iterator[str]:
    """One line for each item, and a second line for what to look at. Minutes are for two CPU cores."""
    width = max(len(item.name) for item in items)
    yield f"{'':<{width}}  minutes"
    for item in items:
        minutes = "-" if item.minutes is None else f"{item.minutes:g}"
        yield f"{item.name:<{width}}  {minutes:>7}  {item.description}"
        if item.look_at:
            yield f"{'':<{width}}  {'':>7}  look at: {item.look_at}"


def facts(items: Sequence[Listed]) -> list[dict[str, object]]:
    """The same as a list of tables, for --json."""
    keys = ("name", "description", "minutes", "look_at")
    return [{key: getattr(item, key) for key in keys} for item in items]
