"""Where and how numbers are computed: device, threads, precision."""

from __future__ import annotations

import contextlib
import ctypes
import os
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

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 inside the block if the scenario asks for it; losses and scores stay float32."""
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=enabled):
            yield


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
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise torch would also fill every new buffer, which only helps code that reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()


def _has_fast_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
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
