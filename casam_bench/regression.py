"""The regression guard: it compares ratios with stored ones, because absolute times depend on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from casam_bench.bench import Figures
from casam_core.errors import RunError
from casam_core.files import write_atomic

ALLOWED_LOSS = 0.2
TRIES = 3
"""A busy machine can disturb a measurement; only losses in three measurements in a row count."""

Ratios = dict[str, Figures]


def ratios_of(figures: Mapping[str, Figures]) -> Ratios:
    """By benchmark, the figures with `ratio` in their name; a higher ratio is better."""
    return {
        benchmark: chosen
        for benchmark, found in figures.items()
        if (chosen := {name: value for name, value in found.items() if "ratio" in name.split("_")})
    }


def write_baseline(path: Path, figures: Mapping[str, Figures]) -> None:
    """Write the ratios of these figures, rounded to three digits, because further digits are noise."""
    rounded = {
        benchmark: {name: float(f"{value:.3g}") for name, value in found.items()}
        for benchmark, found in ratios_of(figures).items()
    }
    write_atomic(path, (json.dumps(rounded, indent=2) + "\n").encode())


def read_baseline(path: Path) -> Ratios:
    """The stored ratios. Raises RunError if the file does not hold ratios."""
    try:
        content = json.loads(path.read_text())
        return {b: {name: float(value) for name, value in found.items()} for b, found in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunError(
            f"--baseline: expected ratios by benchmark and name in {path}, found {type(error).__name__}; "
            "write one with --new-baseline"
        ) from error


def losses(baseline: Figures, found: Figures) -> list[str]:
    """One phrase per ratio that is missing or lost more than ALLOWED_LOSS."""
    lost = []
    for name, stored in baseline.items():
        value = found.get(name)
        if value is None:
            lost.append(f"{name} is missing (stored {stored:g})")
        elif value < (1 - ALLOWED_LOSS) * stored:
            lost.append(f"{name} fell to {value:.3g} (stored {stored:g})")
    return lost


def guard(
    baseline: Ratios,
    measure: Callable[[str], Figures],
    figures: dict[str, Figures],
    say: Callable[[str], None],
) -> None:
    """Compare with the baseline, and measure a benchmark with losses again. Raises RunError with the losses.

    figures: the figures so far; a new measurement replaces its benchmark's figures.
    """
    final = []
    for name, stored in baseline.items():
        for attempt in range(1, TRIES + 1):
            lost = losses(stored, figures.get(name, {}))
            if not lost or attempt == TRIES:
                break
            say(f"{name}: {'; '.join(lost)}; measured again")
            figures[name] = measure(name)
        final += [f"{name}: {phrase}" for phrase in lost]
    if final:
        raise RunError(f"slower than stored by more than {ALLOWED_LOSS:.0%}: {'; '.join(final)}")
