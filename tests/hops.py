"""How much of the house one request walks through: files, functions, frames. `python -m tests.hops` prints
it: at the institution that answers, and at the server from the function that asks to the wire."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from flwr.app import Message

from casam_core.config.scenario import Scenario
from scenarios.engines import inprocess
from tests.conftest import tiny_table

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("casam_core", "client", "server")


@dataclass
class Walk:
    """What ran. deepest: frames of the product above a function, by its name, at most."""

    files: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    frames: dict[str, int] = field(default_factory=dict)


@contextmanager
def followed(walk: Walk, names: tuple[str, ...] = ()) -> Iterator[None]:
    """Note every function of the product that is called inside."""
    kept: dict[Any, str | None] = {}

    def place(frame: FrameType) -> str | None:
        code = frame.f_code
        if code not in kept:
            with suppress(ValueError):
                kept[code] = Path(code.co_filename).relative_to(ROOT).as_posix()
            if (kept.setdefault(code, None) or "").split("/")[0] not in ROOMS:
                kept[code] = None
        return kept[code]

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (path := place(frame)) is None or frame.f_code.co_name == "<module>":
            return
        walk.files.add(path)
        walk.functions.add((path, frame.f_code.co_qualname))
        if frame.f_code.co_name in names:
            depth, above = 0, frame.f_back
            while above is not None:
                depth += place(above) is not None
                above = above.f_back
            name = frame.f_code.co_name
            walk.frames[name] = max(depth, walk.frames.get(name, 0))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def walks(folder: Path) -> dict[str, Walk]:
    """Of a small run: by kind of request, what one institution's answer walks through."""
    found: dict[str, Walk] = {}
    whole: Callable[..., Message] = inprocess.client_app.__call__

    def call(message: Message, context: Any) -> Message:
        # The last of each kind: nothing is loaded for the first time, and all there is has to be measured.
        found[message.metadata.message_type] = walk = Walk()
        with followed(walk, ("decide",)):
            return whole(message, context)

    kept, inprocess.client_app = inprocess.client_app, call  # type: ignore[assignment]
    try:
        inprocess.run_inprocess(Scenario.model_validate(tiny_table()), folder, None)
    finally:
        inprocess.client_app = kept
    return found


ASKING = ("learn_layer", "learn_router", "evaluate")
"""Functions of the server that put a question to institutions."""


def frames_to_the_wire(folder: Path) -> dict[str, int]:
    """By asking function, the most calls from it to `push_messages`, of a small run."""
    found: dict[str, int] = {}

    class MeasuringGrid(inprocess.InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            calls, frame = 1, sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_name not in ASKING:
                calls, frame = calls + 1, frame.f_back
            name = frame.f_code.co_name
            if name in ASKING:
                found[name] = max(calls, found.get(name, 0))
            return super().push_messages(messages)

    kept, inprocess.InProcessGrid = inprocess.InProcessGrid, MeasuringGrid  # type: ignore[misc]
    try:
        inprocess.run_inprocess(Scenario.model_validate(tiny_table()), folder, None)
    finally:
        inprocess.InProcessGrid = kept  # type: ignore[misc]
    return found


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CASAM_HOME"] = str(Path(folder) / "home")
        for kind, walk in walks(Path(folder) / "run").items():
            print(f"{kind}: {len(walk.files)} files, {len(walk.functions)} functions, {walk.frames}")
        for name, calls in frames_to_the_wire(Path(folder) / "asked").items():
            print(f"{name} to the wire: {calls} frames")


if __name__ == "__main__":
    main()
