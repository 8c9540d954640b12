"""The interface of a router: it fits a small state per task and scores new features under it.

A lower score means that a feature is more similar to the task. A state is a dict of arrays, so that it is
sent and stored like the weights of a layer. Because several institutions may hold a task, fitting has three
steps:

    statistics = router.sufficient_statistics(f_NF, seed)     at each holder
    statistics = router.merge(list of statistics)             at the server
    state      = router.fit(statistics)                       stored in the bank
    score      = router.score(f_F, state)                     at any institution

f_NF: N features of length F. A `RouterEntry` declares one kind of router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.named_parts import RouterSpec
from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units
from casam_core.protocol.limits import ArraySpec
from casam_core.seeding import Draws

Arrays = Mapping[str, NDArray[np.float64] | NDArray[np.float32]]
"""Sufficient statistics or a state, by name."""


@dataclass(frozen=True)
class RouterSchema:
    """The forms of the arrays of a state and of sufficient statistics, by name."""

    state: Mapping[str, ArraySpec]
    statistics: Mapping[str, ArraySpec]


class Router(Protocol):
    """One kind of router. An object contains only settings, never data.

    additive: whether `merge` is a sum; only then can a secure sum merge statistics.
    """

    additive: ClassVar[bool]

    def sufficient_statistics(self, f_NF: Tensor, seed: int) -> Arrays:
        """The sufficient statistics of N >= 1 features, including `count`, an array of shape (1,)."""

    def merge(self, statistics: Sequence[Arrays]) -> Arrays:
        """The statistics of all holders together; their order only changes the rounding."""

    def fit(self, statistics: Arrays) -> Arrays:
        """The state, which the bank stores and `score` uses."""

    def schema(self, width: int) -> RouterSchema:
        """The arrays of this router. width: the number F of values in a feature."""

    def score(self, f_F: Tensor, state: Arrays) -> float:
        """The score of a feature: deterministic, any real number, lower for similar features.

        It must only depend on the state: entries store no settings (except the VAE's beta and sampled).
        """


def added(statistics: Sequence[Arrays]) -> Arrays:
    """`Router.merge` for statistics that are sums."""
    return {key: np.sum([part[key] for part in statistics], axis=0) for key in statistics[0]}


PublicFeatures = Callable[[], Sequence[NDArray[np.float64]]]
"""f_NF of public images by modality; they are encoded when it is called."""


class NoisyStatistics(Protocol):
    """Computes the sufficient statistics of one task with differential privacy."""

    def __call__(
        self, f_NF: Tensor, units: Units, *, noise_multiplier: float, draws: Draws, noise: NoiseSource
    ) -> Arrays:
        """The router's sufficient statistics, with noise.

        Args:
            units: indices into f_NF.
            noise_multiplier: of the router (client.dp.plan.router_noise).
            draws: the randomness of learning, which protects nothing.
            noise: the source of the noise that protects the images.
        """


@dataclass(frozen=True)
class PrivateRouter:
    """How to compute a router's statistics with differential privacy, and the cost.

    prepare: (router, the scenario's privacy, public features) -> noisy statistics. It computes the public
        part once for several tasks.
    mechanism: (the scenario's privacy, noise multiplier, number of units) -> the cost of one call.
    lowest_score: (router, state) -> a lower bound of all scores under the state.
    """

    prepare: Callable[[Any, PrivacySpec, PublicFeatures], NoisyStatistics]
    mechanism: Callable[[PrivacySpec, float, int], Mechanism]
    lowest_score: Callable[[Router, Arrays], float]


ReadOut = Callable[[Any, Tensor, Arrays], tuple[Tensor, Tensor]]
"""An attack (casam_bench.membership.inversion): (router, f_NF, state) -> (centre_F, features_NF), float64.

features_NF: the part of every feature that the state reveals.
"""


@dataclass(frozen=True)
class RouterEntry:
    """One kind of router: a line of ENTRIES.

    build: (its section) -> router; if `framed`, (its section, a folder of public frames) -> router.
    section: its keys in a scenario, in addition to those of all routers.
    private: None if the router does not support noise; institutions that ask for noise then refuse it.
    read_out: None if there is no such attack on this router; it is then reported as not measurable.
    """

    build: Callable[..., Router]
    section: type[RouterSpec] = RouterSpec
    private: PrivateRouter | None = None
    read_out: ReadOut | None = None
    framed: bool = False


def doubles(state: Arrays, name: str) -> Tensor:
    """One array of a state, in double precision."""
    return torch.from_numpy(np.asarray(state[name])).double()
