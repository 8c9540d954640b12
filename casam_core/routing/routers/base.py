"""What a router is: per task a small state from pooled features, and a score of a new feature.

Lower scores mean "more like this task". A state is a dict of arrays, so it travels and is stored
like a layer's weights. Three steps, because several institutions may hold one task:

    summary = router.summarise(f_NF, seed)     at each holder
    summary = router.merge(summaries)          at the server
    state   = router.finish(summary)           what the bank keeps
    score   = router.score(f_F, state)         at any institution
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[np.float64] | NDArray[np.float32]]
"""Summaries and states alike."""


class Router(Protocol):
    """One way to recognise a task. Implementations hold settings only, never data.

    additive: whether summaries of several holders are simply added, which a secure sum can do.
    """

    additive: ClassVar[bool]

    def summarise(self, f_NF: Tensor, seed: int) -> Arrays:
        """What one holder says about its N >= 1 features. Always carries `count`, a (1,) array."""

    def merge(self, summaries: Sequence[Arrays]) -> Arrays:
        """The summary of all holders together; order-independent up to the given order's rounding."""

    def finish(self, summary: Arrays) -> Arrays:
        """The state that scores and is stored."""

    def score(self, f_F: Tensor, state: Arrays) -> float:
        """How unlike this task the feature is. Deterministic; any real number."""
