"""What a router is: per task a small state from pooled features, and a score of a new feature.

Lower scores mean "more like this task". A state is a dict of arrays, so it travels and is stored
like a layer's weights. Several institutions may hold one task, so there are three steps:

    statistics = router.sufficient_statistics(f_NF, seed)     at each holder
    statistics = router.merge(list of statistics)             at the server
    state      = router.fit(statistics)                       what the bank keeps
    score      = router.score(f_F, state)                     at any institution

f_NF: N features of length F. A `RouterEntry` says everything there is about one kind of router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.scenario import PrivacySpec, RouterSpec
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units
from casam_core.protocol.limits import ArraySpec

Arrays = Mapping[str, NDArray[np.float64] | NDArray[np.float32]]
"""Statistics and states alike."""


@dataclass(frozen=True)
class RouterSchema:
    """The arrays of a state, and of what holders send to be merged, by name."""

    state: Mapping[str, ArraySpec]
    statistics: Mapping[str, ArraySpec]


class Router(Protocol):
    """One way to recognise a task. Implementations hold settings only, never data.

    additive: whether statistics of several holders are simply added, which a secure sum can do.
    """

    additive: ClassVar[bool]

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        """What one holder says about its N >= 1 features. Always carries `count`, a (1,) array."""

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        """The statistics of all holders together; order-independent up to the given order's rounding."""

    def fit(self, statistics: Arrays) -> Arrays:
        """The state that scores and is stored."""

    def schema(self, width: int) -> RouterSchema:
        """The arrays of this router for features of so many numbers."""

    def score(self, f_F: Tensor, state: Arrays) -> float:
        """How unlike this task the feature is. Deterministic; any real number.

        What a score needs stands in the state: entries keep no settings (but the VAE's beta and sampled).
        """


def added(statistics: Sequence[Arrays]) -> Arrays:
    """`Router.merge` of statistics that are sums."""
    return {key: np.sum([part[key] for part in statistics], axis=0) for key in statistics[0]}


class NoisyStatistics(Protocol):
    """Sufficient statistics of one task under differential privacy."""

    def __call__(
        self, f_NF: Tensor, units: Units, *, noise_multiplier: float, seed: int, noise: NoiseSource
    ) -> Arrays:
        """Statistics as the router's own, with noise.

        Args:
            units: indices into f_NF.
            noise_multiplier: that of a round of training; a router may add more (`privacy.router_ratio`).
            seed: for learning; draws that protect nothing.
            noise: for the privacy.
        """


@dataclass(frozen=True)
class PrivateRouter:
    """How a router's statistics are made with noise, and what that costs.

    prepare: (the scenario's router, its privacy, public features f_NF by modality) -> noisy statistics. What
        is public is computed here, once for several tasks.
    mechanism: (the scenario's privacy, noise multiplier of training) -> what one call costs.
    lowest_score: no image scores less than this under a state.
    """

    prepare: Callable[[Any, PrivacySpec, Sequence[NDArray[np.float64]]], NoisyStatistics]
    mechanism: Callable[[PrivacySpec, float], Mechanism]
    lowest_score: Callable[[Router, Arrays], float]


ReadOut = Callable[[Tensor, Arrays], tuple[Tensor, Tensor]]
"""(f_NF, state) -> (centre_F, what of every feature can be read out of the state, NF); float64. An attack
(casam_bench.membership.inversion)."""


@dataclass(frozen=True)
class RouterEntry:
    """One kind of router: a line of ROUTERS.

    build: (its section) -> router.
    section: its keys in a scenario, besides those that all routers have.
    private: None for one that cannot be made with noise; institutions that ask for noise refuse it by name.
    read_out: None for one that nobody has written the attack for; it is reported as not measurable.
    """

    build: Callable[[Any], Router]
    section: type[RouterSpec] = RouterSpec
    private: PrivateRouter | None = None
    read_out: ReadOut | None = None


def doubles(state: Arrays, name: str) -> Tensor:
    """One array of a state, in double precision."""
    return torch.from_numpy(np.asarray(state[name])).double()
