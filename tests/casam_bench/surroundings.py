"""What benchmarks run in, for tests: nothing is printed."""

from __future__ import annotations

from pathlib import Path

from casam_bench.bench import Surroundings
from scenarios.commands.bench_command import CasamEngines


def surroundings(home: Path, smoke: bool = True) -> Surroundings:
    """Smallest sizes, one thread."""
    return Surroundings(
        home=home,
        images=8,
        threads=1,
        say=lambda line: None,
        show=lambda table: None,
        engines=CasamEngines(),
        smoke=smoke,
    )
