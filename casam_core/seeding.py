"""Learning randomness: one seed per purpose, derived, never shared.

Every random choice of learning is drawn from a generator seeded by
(run seed, institution, stage, round, purpose). Two purposes can therefore be added, dropped or
reordered without moving any other draw. Privacy randomness does not come from here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(run_seed: int, *scope: str | int) -> int:
    """A 63-bit seed for `scope`.

    >>> derive_seed(0, "site-a", 2, 1, "batches") == derive_seed(0, "site-a", 2, 1, "batches")
    True
    >>> derive_seed(0, "site-a", 2) == derive_seed(0, "site-a", "2")  # a number is not its name
    False
    """
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in scope)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(run_seed: int, *scope: str | int) -> np.random.Generator:
    """numpy generator for `scope`."""
    return np.random.default_rng(derive_seed(run_seed, *scope))


def torch_generator(run_seed: int, *scope: str | int) -> torch.Generator:
    """CPU torch generator for `scope`; initial weights are always drawn on the CPU."""
    return torch.Generator().manual_seed(derive_seed(run_seed, *scope))


@contextlib.contextmanager
def initialisers_from(seed: int) -> Iterator[None]:
    """Inside, what torch draws from the process's CPU generator (as initial weights are) begins at `seed`.

    Afterwards that generator is as it was. `torch.manual_seed` would also queue a call, with a formatted
    stack, for every kind of accelerator that this process never uses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
