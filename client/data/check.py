"""Read a whole dataset once, before hours are spent on part of it."""

from __future__ import annotations

from collections.abc import Callable

from client.data.dataset import Dataset


def check(dataset: Dataset, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Load every sample in order; raises the first DataError.

    progress: called with (samples read, samples in all) after each one.
    """
    samples = dataset.samples
    for done, sample in enumerate(samples, start=1):
        dataset.load(sample)
        if progress is not None:
            progress(done, len(samples))
