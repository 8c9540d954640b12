"""Where and how numbers are computed: device, threads, precision."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from casam_core.config.scenario import ComputeSpec
from casam_core.errors import RunError, ScenarioError

LOG = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

TOGETHER = 16
"""Images that an accelerator encodes together with a faster encoder. A processor gains nothing from more than
one; the plain encoder keeps all scores of its attention in memory, gigabytes per image."""

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


LOADERS = 8
"""Threads that read images for an accelerator."""


@dataclass(frozen=True)
class Compute:
    """A resolved ComputeSpec: no value is `auto`."""

    device: str
    threads: int
    precision: str
    encoder: str = "plain"

    @property
    def variant(self) -> str:
        """A name of the arithmetic, e.g. `cpu-float32-t1`; part of the key of every embedding.

        With another number of threads, the last bits of a result can differ.
        """
        plain = f"{self.device.split(':')[0]}-{self.precision}-t{self.threads}"
        return plain if self.encoder == "plain" else f"{plain}-{self.encoder}-{self.encoder_precision}"

    @property
    def encoder_precision(self) -> str:
        """Precision of the image encoder: the faster ones use bfloat16 if the chip supports it."""
        if self.encoder == "plain":
            return self.precision
        return "bfloat16" if _has_fast_bfloat16(self.device) else "float32"

    @property
    def accelerated(self) -> bool:
        """Whether the device is no processor: few large calls are then faster than many small ones."""
        return self.device != "cpu"

    @property
    def together(self) -> int:
        """Images that are encoded together: always as many, because their number decides the last bits."""
        return TOGETHER if self.accelerated and self.encoder != "plain" else 1

    def moved(self, x: Tensor) -> Tensor:
        """x on the device (see `to_device`)."""
        return to_device(x, torch.device(self.device))

    @property
    def prompts_together(self) -> int:
        """Prompts on one image that are decoded together; eight stay in a processor's cache (30 MB each)."""
        return 64 if self.accelerated else 8

    def fetched(self, x: Tensor) -> Callable[[], Tensor]:
        """Start to copy x into the processor's memory; the function that is returned waits for it."""
        if x.device.type != "cuda":
            return x.cpu
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        copy.copy_(x, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(x.device))

        def wait() -> Tensor:
            arrived.synchronize()
            return copy

        return wait

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 inside the block if the scenario asks for it; losses and scores stay float32."""
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=enabled):
            yield


def read_ahead(threads: Executor, read: Callable[[int], Result], count: int, ahead: int) -> Iterator[Result]:
    """read(0), read(1), ... of `count`, in order; the threads are up to `ahead` of them in front."""
    asked = iter(range(count))
    waiting = deque(threads.submit(read, i) for i in islice(asked, ahead))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(threads.submit(read, i) for i in islice(asked, 1))
        yield done


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on a device. From pinned memory it is copied to a CUDA card while the processor goes on."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


@dataclass(frozen=True)
class Halved:
    """Work that did not fit into the device's memory at once, and is done in two halves from then on.

    names: of such work, in the order in which memory was short.
    """

    names: list[str] = field(default_factory=list)

    def run(self, name: str, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> list[Result]:
        """[work(items)], or the results of two halves. Raises RunError if there is no memory for a half.

        name: of the kind of work, which works in halves from then on.
        """

        def in_parts() -> list[Result]:
            if name not in self.names:
                return [work(items)]
            half = -(-len(items) // 2)
            return [work(part) for part in (items[:half], items[half:]) if len(part)]

        return self.attempt(name, len(items), in_parts)

    def attempt(
        self, name: str, size: int, work: Callable[[], Result], undo: Callable[[], None] = lambda: None
    ) -> Result:
        """work(); if memory is short, once more with `name` among the names, after which it works in halves.

        size: of the whole. undo: called between the two. Raises RunError if there is no memory for a half.
        """
        if name not in self.names:
            try:
                return work()
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                if size < 2:
                    raise self.lacking(name, size) from error
            undo()  # outside of the block, whose error still holds tensors
            self.names.append(name)
            LOG.warning("%s: no device memory for %d at once; from here on in two halves", name, size)
            free_unused()  # it lies in blocks of other sizes
        try:
            return work()
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            raise self.lacking(name, -(-size // 2)) from error

    @staticmethod
    def lacking(name: str, size: int) -> RunError:
        """The error if memory is short a second time."""
        return RunError(
            f"{name}: expected device memory for {size} at once, found too little; use a device with more "
            "memory, close other programs on it, or set compute.device = 'cpu'"
        )


def lacks_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory: torch's own error, or that of a library or of Metal, which come
    as plain errors."""
    plain = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in plain)


def forget_peak() -> None:
    """Measure the peak of device memory anew from here on (see `peak_bytes`)."""
    for number in cards_in_use():
        torch.cuda.reset_peak_memory_stats(number)


def peak_bytes() -> int:
    """The most device memory that this process held at a time; 0 without a CUDA card."""
    return sum(torch.cuda.max_memory_allocated(number) for number in cards_in_use())


def free_unused() -> None:
    """Give device memory that nothing uses back, to other processes on the same card."""
    if cards_in_use():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def cards_in_use() -> range:
    """Numbers of the CUDA cards, if this process has used one; asking does not start to use them."""
    used = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if used else 0)


def resolve_compute(spec: ComputeSpec) -> Compute:
    """Resolve `auto` on this machine. Raises ScenarioError if the device is not available."""
    available = "cuda" if torch.cuda.is_available() else "cpu"
    device = available if spec.device == "auto" else spec.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ScenarioError(
            f"compute.device is {device!r} but torch finds no CUDA device; use 'cpu' or 'auto'"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ScenarioError("compute.device is 'mps' but torch finds no Metal device; use 'cpu' or 'auto'")
    precision = spec.precision
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    return Compute(device=device, threads=spec.threads, precision=precision, encoder=spec.encoder)


def prepare_process(compute: Compute) -> None:
    """Set threads, allocator and determinism of this process; call it once, before the first tensor."""
    torch.set_num_threads(compute.threads)
    # cuBLAS gives the same bits in every run only if it knows its workspace before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if compute.encoder == "compiled":
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # the same without PyTorch's compiler, whose import takes a second
        torch.set_deterministic_debug_mode("warn")
    # Otherwise torch would also fill every new buffer, which only helps code that reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()


def _has_fast_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _keep_freed_memory() -> None:
    """Stop glibc from returning every large buffer to the kernel.

    SAM's decoder allocates and frees tens of MB per prompt. With the default settings, each buffer is mapped
    and page-faulted again, which takes longer than the computation on it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)
