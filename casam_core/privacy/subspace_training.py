"""Private training of a layer in few steps: a public start, gradients of all units in a public subspace.

    1. Where the round starts from new weights: the exponential mechanism picks a start from a public library
       (casam_core.model.layer_library). A unit votes with the gain in IoU that a start gives its images.
    2. A few steps of gradient descent with momentum. The gradient of each unit is taken along the library's
       directions, clipped, and all units are added with noise: K numbers a step, and no sampling.
    3. The exponential mechanism picks how far to go along the way that was found: 0, a part, or all of it.

The small number of directions keeps the noise small; the last choice keeps a way that noise made useless from
being gone. SAM is frozen, and what one unit adds depends on no other unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.config.scenario import PrivacySpec
from casam_core.model.forms import Weights, set_weights, weights_of
from casam_core.model.layer_library import IDENTITY, LayerLibrary
from casam_core.model.training import Drawn, Learner, Step, draw_instances
from casam_core.model.validation import as_measured, iou_and_estimate
from casam_core.privacy.accounting import Mechanism, choice_epsilon
from casam_core.privacy.dp_training import add_gradients
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_choice import choose
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units
from casam_core.seeding import Draws

START_NOISE, LENGTH_NOISE = 1.0, 2.0
"""Noise of the two choices, as multiples of the noise of a step."""
GAIN = 0.05
"""The gain in IoU that counts as a full vote."""
PRIOR, OTHERS = {IDENTITY: 0.5, "joint": 0.3}, 0.2
"""The prior of two starts, and of all others together. Where the epsilon of the choice is below 1, votes
decide little; then the others have less, in proportion to epsilon: a start for another task can harm."""
LENGTHS = (0.0, 0.6, 1.2)
PATH, MOMENTUM = 3.0, 0.5
"""The length of all steps together, if all gradients are at the clip, in the library's `reach`; and the share
of a step that the next one repeats."""
SIGNAL = 0.5
"""The length of a mean gradient of one task, in units of `clip`, before it has noise."""


def subspace_mechanisms(spec: PrivacySpec, noise_multiplier: float, *, fresh: bool) -> dict[str, Mechanism]:
    """What a round costs, by the name of its lines in the ledger. fresh: it picks its start."""
    start = {"start": Mechanism(START_NOISE * noise_multiplier)} if fresh else {}
    return {
        **start,
        "align": Mechanism(noise_multiplier, steps=spec.descent_steps),
        "length": Mechanism(LENGTH_NOISE * noise_multiplier),
    }


@dataclass(frozen=True)
class SubspaceSteps:
    """The steps of one private round, for `train_layer`; `subspace_mechanisms` is the cost.

    Args:
        units: indices into the training images.
        noise: makes the choices and adds the noise.
        draws: of this round; for the instances and prompts, which protect nothing.
        fresh: pick a start; else the learner's layer is the start.
    """

    units: Units
    privacy: PrivacySpec
    library: LayerLibrary
    noise_multiplier: float
    noise: NoiseSource
    draws: Draws
    fresh: bool

    def __call__(self, learner: Learner) -> Iterator[Step]:
        steps = self.privacy.descent_steps
        total, layer, library = steps + 2, learner.layer, self.library
        start = weights_of(layer)
        if self.fresh:
            certain = min(1.0, choice_epsilon(START_NOISE * self.noise_multiplier))
            rest = OTHERS * certain / len(library.names)
            prior_J = np.array([PRIOR.get(name, rest) for name in library.names])
            starts = [library.start(name) for name in library.names]
            start = starts[self.choose(learner, "start", starts, prior_J, START_NOISE)]
        yield Step(1, total, taken=False, loss=None)
        way_K = np.zeros(len(library.flat_directions))
        for step, place_K in enumerate(self.descend(learner, start), 1):
            way_K = place_K
            yield Step(1 + step, total, taken=True, loss=None)
        ends = [library.moved(start, length * way_K) for length in LENGTHS]
        set_weights(layer, ends[self.choose(learner, "length", ends, np.ones(len(ends)), LENGTH_NOISE)])
        yield Step(total, total, taken=False, loss=None)

    def choose(
        self,
        learner: Learner,
        purpose: str,
        candidates: Sequence[Weights],
        prior_J: NDArray[np.float64],
        noise: float,
    ) -> int:
        """The number of the candidate that the units choose. Each votes with the gain over the first one."""
        rows = (votes(learner, self.draws, purpose, candidates, unit) for unit in self.units)
        return choose(rows, prior_J, noise * self.noise_multiplier, self.noise)

    def descend(self, learner: Learner, start: Weights) -> Iterator[NDArray[np.float64]]:
        """After each step, the place way_K along the directions."""
        library, layer, steps = self.library, learner.layer, self.privacy.descent_steps
        total = PrivateSum(library.clip, self.noise_multiplier)
        way_K = speed_K = np.zeros(len(library.flat_directions))

        def row_of(step: int, unit: Unit) -> NDArray[np.float64]:
            layer.zero_grad()
            add_gradients(learner, self.draws, step, unit)
            g_K = library.gradient_along(layer)
            layer.zero_grad()
            return g_K

        for step in range(1, steps + 1):
            set_weights(layer, library.moved(start, way_K))
            rows = (row_of(step, unit) for unit in self.units)
            mean_K = total.release(rows, len(way_K), self.noise) / self.units.count
            kept = kept_share(len(way_K), self.noise_multiplier / self.units.count)
            speed_K = MOMENTUM * speed_K - kept * mean_K / library.clip
            way_K = way_K + PATH * library.reach / steps * speed_K
            yield way_K


def kept_share(directions: int, noise: float) -> float:
    """How much of a noisy mean gradient is used: the share of its square that is not noise (Wiener).

    noise: the standard deviation of the noise along one direction, in units of `clip`.

    >>> kept_share(16, 0.0), kept_share(16, 0.125)
    (1.0, 0.5)
    """
    return SIGNAL**2 / (SIGNAL**2 + directions * noise**2)


def votes(
    learner: Learner, draws: Draws, purpose: str, candidates: Sequence[Weights], unit: Unit
) -> NDArray[np.float64]:
    """row_J: the mean gain in IoU of the unit's images over the first candidate, in units of GAIN."""
    gains = []
    for index, image in zip(unit.images, unit.ids, strict=True):
        spec, generator = as_measured(learner.spec), draws.generator(purpose, image)
        drawn = draw_instances(learner.examples[index], learner.backbone, spec, "box", generator)
        if drawn is not None:
            gains.append(iou_of_each(learner, candidates, drawn))
    if not gains:
        return np.zeros(len(candidates))
    iou_J = np.mean(gains, axis=0)
    votes_J: NDArray[np.float64] = (iou_J - iou_J[0]) / GAIN
    return votes_J


def iou_of_each(learner: Learner, candidates: Sequence[Weights], drawn: Drawn) -> NDArray[np.float64]:
    """The mean IoU of one image's instances under each candidate."""
    found = []
    for weights in candidates:
        set_weights(learner.layer, weights)
        found.append(float(iou_and_estimate(learner.layer, learner.backbone, drawn)[0]))
    return np.array(found)
