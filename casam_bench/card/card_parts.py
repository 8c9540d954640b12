"""`casam bench gpu`: its parts, one after the other; what has its figures is not measured again.

A part that fails or takes too long is reported by name, with its traceback in a file, and the next one
begins. The figures of a part are kept in the folder `Surroundings.parts`, for the same card and the same
code. A part that did not end in an earlier call comes last.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.card.card import Card, device_of
from casam_bench.card.card_encoder import compiled_encoder, encoder_rates
from casam_bench.card.card_institutions import growth, stored_rates
from casam_bench.card.card_training import alignment, busy, determinism, steps
from casam_bench.card.card_use import decoding, routing
from casam_bench.card.paper_run import paper
from casam_core.files import write_atomic
from casam_core.protocol.fingerprint import code_fingerprint

Part = Callable[[Card, Figures], Figures]
"""(the card, the figures of the parts before) -> figures."""


def peak(card: Card, known: Figures) -> Figures:
    """What the card can do: products of matrices, and copies in its memory."""
    return {
        "gemm_bfloat16_tflops": card.tflops(torch.bfloat16),
        "gemm_float32_tflops": card.tflops(torch.float32),
        "memory_gb_per_second": card.read_gb(),
    }


PARTS: dict[str, Part] = {
    "peak": peak,
    "encoder_vit_b": partial(encoder_rates, "vit_b"),
    "steps": steps,
    "alignment": alignment,
    "busy": busy,
    "decoding": decoding,
    "routing": routing,
    "institutions": growth,
    "store": stored_rates,
    "paper": paper,
    "encoder_vit_h": partial(encoder_rates, "vit_h"),
    "encoder_vit_l": partial(encoder_rates, "vit_l"),
    "determinism": determinism,
    "compiled": compiled_encoder,
}
"""The most important first, in case the time on a card ends."""

LIMIT, LIMITS = 40.0, {"paper": 110.0, "compiled": 80.0}
"""Seconds after which a part on a card is stopped. A rehearsal on a processor has no limit."""

TIME = "CASAM_GPU_SECONDS"
"""The variable with the seconds for all parts; without it they take as long as they take."""


def run(around: Surroundings) -> Figures:
    """All figures of all parts; the functions of the parts say what they are. PART_seconds: what a part took.
    failed_PART = 1 for a part that failed."""
    device = device_of()
    card = Card(device, around.smoke or device == "cpu", around)
    card.compute()  # before the first product: it decides whether the same work gives the same bits
    figures: Figures = {}
    begun = time.monotonic()
    end = begun + float(os.environ.get(TIME, math.inf))
    for number, name in enumerate(sorted(PARTS, key=partial(ended_badly, around.parts)), 1):
        kept = figures_in(around.parts, name, card)
        if kept is not None:
            around.say(f"gpu: {name} has its figures ({number} of {len(PARTS)})")
            figures |= kept
            continue
        around.say(f"gpu: {name} ({number} of {len(PARTS)}, after {time.monotonic() - begun:.0f} s)")
        left = end - time.monotonic()
        if left <= 0:
            around.say(f"gpu: no time was left for {name}; the same call again measures it")
            figures[f"failed_{name}"] = 1.0
            continue
        most = LIMITS.get(name, LIMIT) if card.cuda else math.inf
        figures |= measured(card, name, PARTS[name], figures, min(left, most))
    show(card, figures)
    if failed := [name for name in PARTS if f"failed_{name}" in figures]:
        around.say(f"gpu: FAILED: {', '.join(failed)}; the other figures are good")
    return figures


def measured(card: Card, name: str, part: Part, known: Figures, most: float = math.inf) -> Figures:
    """The figures of a part, which are kept; failed_PART if it failed or took more than `most` seconds."""
    folder, begun = card.around.parts, time.monotonic()
    card.free()
    if folder is not None:  # what is left if the process itself ends
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(error_of(folder, name), b"the process ended within this part\n")
    try:
        with limited(most):
            found = part(card, known) | {f"{name}_seconds": time.monotonic() - begun}
    except (Exception, TooLong) as error:
        first, *_ = str(error).splitlines() or [""]
        card.around.say(f"gpu: {name} FAILED: {type(error).__name__}: {first}")
        if folder is not None:
            write_atomic(error_of(folder, name), traceback.format_exc().encode())
        return {f"failed_{name}": 1.0}
    for key, value in found.items():
        card.around.say(f"gpu:   {key} = {value:.4g}")
    if folder is not None:
        kept = {"card": card.name, "code": code_fingerprint(), "figures": found}
        write_atomic(folder / f"{name}.json", (json.dumps(kept, indent=2) + "\n").encode())
        error_of(folder, name).unlink(missing_ok=True)
    return found


class TooLong(BaseException):
    """A part took too long. No part catches it by mistake, as it is no Exception."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong in the block after so many seconds. A call that does not come back from the driver is not
    reached by it: check.sh ends the process."""
    if seconds == math.inf:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"expected its end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def error_of(folder: Path, name: str) -> Path:
    """Where a part that has no figures says why."""
    return folder / f"{name}.error.txt"


def ended_badly(folder: Path | None, name: str) -> bool:
    """Whether an earlier call left the part without figures."""
    return folder is not None and error_of(folder, name).exists()


def figures_in(folder: Path | None, name: str, card: Card) -> Figures | None:
    """The kept figures of a part; None if there are none of this card and this code."""
    if folder is None:
        return None
    try:
        kept = json.loads((folder / f"{name}.json").read_text())
        same = (kept["card"], kept["code"]) == (card.name, code_fingerprint())
        return dict(kept["figures"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def show(card: Card, figures: Figures) -> None:
    """A row per figure."""
    table = table_of(f"on {card.name}", ("figure", "value"))
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    card.around.show(table)
