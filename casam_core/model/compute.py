"""Where and how the arithmetic is done: device, threads, precision."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from casam_core.config.scenario import ComputeSpec
from casam_core.errors import ScenarioError

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Compute:
    """A resolved ComputeSpec: nothing is `auto` any more."""

    device: str
    threads: int
    precision: str
    encoder: str = "plain"

    @property
    def variant(self) -> str:
        """One word that names the arithmetic, e.g. `cpu-float32-t1`; part of every embedding's key.

        The same mathematics with another thread count has other last bits.
        """
        plain = f"{self.device.split(':')[0]}-{self.precision}-t{self.threads}"
        return plain if self.encoder == "plain" else f"{plain}-{self.encoder}-{self.encoder_precision}"

    @property
    def encoder_precision(self) -> str:
        """Of the image encoder: the faster ones take bfloat16 wherever the chip multiplies it."""
        if self.encoder == "plain":
            return self.precision
        return "bfloat16" if _has_fast_bfloat16(self.device) else "float32"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Low precision where the scenario asks for it; losses and scores stay float32."""
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=enabled):
            yield


def resolve_compute(spec: ComputeSpec) -> Compute:
    """Choose what `auto` means on this machine. Raises ScenarioError for a device that is not there."""
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
    """Set this process's threads, allocator and determinism once, before the first tensor."""
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That also fills every fresh buffer, for code that reads what it never wrote; ours does not.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()


def _has_fast_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _keep_freed_memory() -> None:
    """Stop glibc from returning every large buffer to the kernel.

    SAM's decoder allocates and frees tens of MB per prompt; with the default settings each buffer is
    mapped and page-faulted anew, which costs more than the arithmetic on it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)
