"""The machine of the measurements, and how fast it multiplies matrices and reads memory.

The GEMM peak is the best of several shapes and of the libraries that torch calls (MKL for matrix products,
oneDNN for convolutions), because on some processors one library is twice as fast as the other.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.timing import clock

SIDES = (512, 1024, 2048)
CHANNELS, CELLS, KERNELS = 256, 64, (1, 3)
"""The shape of an embedding, and the sizes of the convolutions on it."""
REPEATS = 7
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STREAM_BYTES = 256 << 20


def run(around: Surroundings) -> Figures:
    """Figures: cores, threads, gib, gemm_float32 and gemm_bfloat16 (GFLOP/s), memory_read (GB/s)."""
    torch.set_num_threads(around.threads)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    figures: Figures = {
        "cores": float(os.cpu_count() or 1),
        "threads": float(around.threads),
        "gib": memory,
        **{f"gemm_{name}": gemm_peak(name, around.threads) for name in PRECISIONS},
        "memory_read": memory_read(around.threads),
    }
    table = table_of(f"{processor()}, {platform.system()}, torch {torch.__version__}", list(figures), left=0)
    table.add_row(*(f"{value:.1f}" for value in figures.values()))
    around.show(table)
    return figures


def processor() -> str:
    """The processor's name, if the system knows it."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fastest(work: Callable[[], object], threads: int) -> float:
    """Seconds of the best of several calls, because a peak is not an average."""
    now, best = clock(threads), float("inf")
    work()
    for _ in range(REPEATS):
        begun = now()
        work()
        best = min(best, now() - begun)
    return best


@torch.no_grad()
def gemm_peak(precision: str, threads: int) -> float:
    """GFLOP/s of the fastest matrix product or convolution of this precision."""
    dtype, layout = PRECISIONS[precision], torch.channels_last
    rates = []
    for side in SIDES:
        a, b = torch.randn(2, side, side).to(dtype).unbind()
        rates.append(2 * side**3 / fastest(partial(torch.mm, a, b), threads) / 1e9)
    image = torch.randn(1, CHANNELS, CELLS, CELLS).to(dtype).to(memory_format=layout)
    for size in KERNELS:
        convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, size, padding="same", bias=False)
        run = partial(convolution.to(dtype).to(memory_format=layout), image)
        rates.append(2 * (CHANNELS * size * CELLS) ** 2 / fastest(run, threads) / 1e9)
    return max(rates)


def memory_read(threads: int) -> float:
    """GB/s of a sum over more numbers than any cache holds."""
    numbers = torch.ones(STREAM_BYTES // 4)
    return STREAM_BYTES / fastest(numbers.sum, threads) / 1e9
