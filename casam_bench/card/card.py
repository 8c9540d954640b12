"""The card of the measurements: seconds until it has finished, its peaks, and the power that it draws.

CASAM_GPU=cpu takes the processor in its place, to rehearse everything at tiny sizes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean, median

import torch

from casam_bench.bench import Surroundings
from casam_core.errors import RunError
from casam_core.model.compute import Compute, free_unused, prepare_process

VARIABLE = "CASAM_GPU"
WARM_UP, FEWEST, MOST, LONG = 2, 3, 20, 1.5
"""Calls before a measurement; calls in it, as many as take LONG seconds."""


def device_of() -> str:
    """The device of this measurement: cuda, or what CASAM_GPU names. Raises RunError if there is none."""
    device = os.environ.get(VARIABLE, "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(
            f"bench gpu: expected a CUDA device, torch {torch.__version__} finds none; "
            f"{VARIABLE}=cpu rehearses the measurement on the processor"
        )
    return device


@dataclass(frozen=True)
class Card:
    """A device, and how much is measured: `small` only shows that it works."""

    device: str
    small: bool
    around: Surroundings

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.cuda else "processor"

    def compute(self, precision: str = "float32", encoder: str = "plain") -> Compute:
        """The arithmetic, with the process set up for it."""
        compute = Compute(self.device, self.around.threads, precision, encoder)
        prepare_process(compute)
        return compute

    def finish(self) -> None:
        """Wait until the card has done all it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give back all memory that nothing holds."""
        gc.collect()
        free_unused()

    def once(self, work: Callable[[], object]) -> float:
        """Wall-clock seconds of one call, until the card has finished it."""
        self.finish()
        begun = time.perf_counter()
        work()
        self.finish()
        return time.perf_counter() - begun

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of several calls after a few others."""
        for _ in range(1 if self.small else WARM_UP):
            work()
        first = self.once(work)
        calls = 0 if self.small else max(FEWEST, min(MOST, int(LONG / first)))
        return median([first, *(self.once(work) for _ in range(calls))])

    def tflops(self, dtype: torch.dtype) -> float:
        """TFLOP/s of the fastest product of two square matrices."""
        rates = []
        for side in (128,) if self.small else (4096, 8192):
            a, b = torch.randn(2, side, side, device=self.device).to(dtype).unbind()
            rates.append(2 * side**3 / self.seconds(lambda a=a, b=b: a @ b) / 1e12)  # type: ignore[misc]
        return max(rates)

    def read_gb(self) -> float:
        """GB/s of copying memory on the card, read and write together."""
        x = torch.ones(1 << (20 if self.small else 28), device=self.device)
        return 2 * x.nbytes / self.seconds(x.clone) / 1e9


@dataclass
class Power:
    """Watts that the driver tells, read while something runs; empty if it tells none."""

    watts: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        return mean(self.watts) if self.watts else None


@contextlib.contextmanager
def power_of(card: Card) -> Iterator[Power]:
    """Read the power twice a second inside the block."""
    power, ended = Power(), threading.Event()

    def watch(command: str) -> None:
        while not ended.wait(0.5):
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                asked = [command, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0"]
                told = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
                power.watts.append(float(told.split()[0]))

    command = shutil.which("nvidia-smi") if card.cuda else None
    thread = threading.Thread(target=watch, args=(command,), daemon=True) if command else None
    if thread:
        thread.start()
    try:
        yield power
    finally:
        ended.set()
        if thread:
            thread.join(10)
