"""The randomness of learning: every purpose has its own derived seed.

Every random choice of learning uses a generator seeded by (run seed, institution, stage, round, purpose). A
purpose can therefore be added, removed or moved without a change of other draws. Privacy noise has another
source (casam_core.privacy.noise).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


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
    """A numpy generator for `scope`."""
    return np.random.default_rng(derive_seed(run_seed, *scope))


@dataclass(frozen=True)
class Draws:
    """Generators of one scope, one for each item. Private computations use them: what is drawn for one image
    must not depend on the other images."""

    run_seed: int
    scope: tuple[str | int, ...]

    def seed(self, *item: str | int) -> int:
        """The seed of an item."""
        return derive_seed(self.run_seed, *self.scope, *item)

    def generator(self, *item: str | int) -> np.random.Generator:
        """A new numpy generator for an item."""
        return np.random.default_rng(self.seed(*item))


@contextlib.contextmanager
def initialisers_from(seed: int) -> Iterator[None]:
    """Inside the block, torch's default CPU generator, which draws initial weights, starts at `seed`.

    Afterwards it has its previous state. `torch.manual_seed` would also queue a call, with a formatted stack,
    for every kind of accelerator.
    """
    import torch  # takes seconds; a scenario that is only read needs numpy alone

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
