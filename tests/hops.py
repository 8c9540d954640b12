"""How much of the house one request walks through: files, functions, frames. `python -m tests.hops` prints
it: at the institution that answers, at the server from the function that asks to the wire, and from a user's
`predict` to the mask decoder. The test runs the command, so both measure the same: what a process has loaded
or drawn before changes the figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

import casam
from casam_core.config.scenario import Scenario
from casam_core.model.backbones import mask_decoder
from scenarios.engines import inprocess
from tests.conftest import tiny_table, with_policies

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("casam_core", "client", "server")
SOURCES = tuple(f"{ROOT}/{room}/" for room in (*ROOMS, "casam_use"))
SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "minimum_cohort": 2}
TABLES: dict[str, dict[str, Any]] = {
    "open": tiny_table(),
    "summed": with_policies(tiny_table(), south=SECRET, west=SECRET),
    "unlearned": with_policies(
        tiny_table(stream=["histology", "polyp"]), west={"leaves_at": 2, "on_leave": "unlearn"}
    ),
}
"""Small runs whose questions take different ways to the wire."""


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
        inprocess.run_inprocess(Scenario.model_validate(TABLES["open"]), folder, None)
    finally:
        inprocess.client_app = kept
    return found


ASKING = ("learn_layer", "learn_router", "evaluate", "unlearn")
"""Functions of the server that put a question to institutions."""


def frames_to_the_wire(folder: Path, table: dict[str, Any]) -> dict[str, int]:
    """By the outermost asking function, the most calls from it to `push_messages`, Flower's own included."""
    found: dict[str, int] = {}

    class MeasuringGrid(inprocess.InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            names = list(names_above(sys._getframe(1)))
            for calls, name in reversed(list(enumerate(names, 1))):
                if name in ASKING:
                    found[name] = max(calls, found.get(name, 0))
                    break
            return super().push_messages(messages)

    kept, inprocess.InProcessGrid = inprocess.InProcessGrid, MeasuringGrid  # type: ignore[misc]
    try:
        inprocess.run_inprocess(Scenario.model_validate(table), folder, None)
    finally:
        inprocess.InProcessGrid = kept  # type: ignore[misc]
    return found


def names_above(frame: FrameType | None, *, ours: bool = False) -> Iterator[str]:
    """Names of a frame's function and of those that called it; comprehensions do not count.

    ours: only functions of SOURCES.
    """
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if not name.startswith("<") and (not ours or file.startswith(SOURCES)):
            yield name
        frame = frame.f_back


def frames_to_the_decoder(bank: Path) -> int:
    """The calls from a user's `predict` to the function that runs the mask decoder, without PyTorch's own."""
    found: list[int] = []
    whole: Callable[..., Any] = mask_decoder.decode_prompts

    def decode_prompts(*given: Any) -> Any:
        found.append(list(names_above(sys._getframe(), ours=True)).index("predict"))
        return whole(*given)

    loaded = casam.load_bank(bank)
    segmenter = casam.Segmenter(casam.backbone_for(loaded), loaded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casam_core.model.backbones.base.decode_prompts", decode_prompts)
        segmenter.predict(np.full((64, 64, 3), 128, np.uint8), [(8, 8, 40, 40)])
    return max(found)


def measured() -> dict[str, Any]:
    """All figures, of new runs in a new home. requests: by kind, files, functions, frames above `decide`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CASAM_HOME"] = str(folder / "home")
        requests = {
            kind: [len(walk.files), len(walk.functions), walk.frames.get("decide", 0)]
            for kind, walk in walks(folder / "run").items()
        }
        wire = {what: frames_to_the_wire(folder / what, table) for what, table in TABLES.items()}
        decoder = frames_to_the_decoder(folder / "run" / "bank")
    return {"requests": requests, "wire": wire, "decoder": decoder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the figures to this file, too.")
    found, file = measured(), parser.parse_args().json
    for kind, (files, functions, decide) in found["requests"].items():
        print(f"{kind}: {files} files, {functions} functions, {decide} frames above `decide`")
    for what, asked in found["wire"].items():
        print(f"{what}: frames to the wire: {', '.join(f'{name} {calls}' for name, calls in asked.items())}")
    print(f"predict to the decoder: {found['decoder']} frames")
    if file:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
