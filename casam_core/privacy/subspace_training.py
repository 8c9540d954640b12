"""Private training of a layer in few steps: a public start, gradients of all units in a public subspace.

    1. A round that starts from new weights starts from frozen SAM or from the layer of all public tasks
       together, the library's `joint` (casam_core.model.layer_library): the exponential mechanism picks one.
       Later rounds start from the merged layer.
    2. A few steps of gradient descent with momentum. The gradient of each unit is taken along the library's
       directions, clipped, and all units are added with noise: K numbers a step, and no sampling. Where noise
       would hide the gradients, there is no step, and no choice before it.
    3. The exponential mechanism picks where to end: frozen SAM (in the first round), the start, or a part of
       the way.

A unit votes in a choice with the gain in IoU that each answer gives its images.

The small number of directions keeps the noise small; the choice leaves a way that noise made useless and a
start that does not suit the task. SAM is frozen, and what one unit adds depends on no other unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.model.forms import Weights, set_weights, weights_of
from casam_core.model.layer_library import IDENTITY, JOINT, LayerLibrary
from casam_core.model.training import Drawn, Learner, Step, draw_instances
from casam_core.model.validation import as_measured, iou_and_estimate
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.dp_training import add_gradients
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_choice import choose
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units
from casam_core.seeding import Draws

START_GAIN, END_GAIN = 0.2, 0.05
"""The gains in IoU that count as a full vote. A start for another kind of task can be far worse than frozen
SAM, and a good one need not be better yet."""
PRIOR = (0.2, 0.8)
"""The prior of the starts: frozen SAM, joint."""
LENGTHS = (0.0, 0.5, 1.0)
"""The ends: parts of the way."""
STEPS, DIRECTIONS = {8: 0.5, 4: 0.2}, 16
"""Steps of a round, and the share of a gradient along so many directions that must be kept for so many steps;
with less for every number, there is no step."""
PATH, MOMENTUM = 3.0, 0.5
"""The length of all steps together, if all gradients are at the clip, in the library's `reach`; and the share
of a step that the next one repeats."""
TURNED = 0.5
"""A gradient that points back against the one before makes the steps from then on so much shorter: the last
step went too far. It costs nothing, because both have their noise."""
SIGNAL = 0.5
"""The length of a mean gradient of one task, in units of `clip`, before it has noise."""


def planned_steps(noise_of: Callable[[int], float], units: int) -> int:
    """The steps of a round. noise_of: steps -> the noise multiplier that the budget then needs."""
    for steps, least in STEPS.items():
        if kept_share(DIRECTIONS, noise_of(steps) / units) >= least:
            return steps
    return 0


def subspace_mechanisms(steps: int, noise_multiplier: float, *, fresh: bool) -> dict[str, Mechanism]:
    """What a round costs, by the name of its lines in the ledger: each choice as much as a step.

    steps: of gradient descent; may be 0. fresh: it starts from new weights.
    """
    once = Mechanism(noise_multiplier)
    start = {"start": once} if steps and fresh else {}
    descent = {"align": Mechanism(noise_multiplier, steps=steps)} if steps else {}
    return {**start, **descent, "end": once}


@dataclass(frozen=True)
class SubspaceSteps:
    """The steps of one private round, for `train_layer`; `subspace_mechanisms` is the cost.

    Args:
        units: indices into the training images.
        count: steps of gradient descent; may be 0.
        noise: makes the choice and adds the noise.
        draws: of this round; for the instances and prompts, which protect nothing.
        fresh: start from the library; else the learner's layer is the start.
    """

    units: Units
    count: int
    library: LayerLibrary
    noise_multiplier: float
    noise: NoiseSource
    draws: Draws
    fresh: bool

    def __call__(self, learner: Learner) -> Iterator[Step]:
        total, layer, library = self.count + 2, learner.layer, self.library
        starts = [library.start(IDENTITY), library.start(JOINT)] if self.fresh else [weights_of(layer)]
        start = starts[-1]
        if self.fresh and self.count:
            start = starts[self.choose(learner, "start", starts, PRIOR, START_GAIN)]
        yield Step(1, total, taken=False, loss=None)
        way_K = np.zeros(len(library.flat_directions))
        for step, place_K in enumerate(self.descend(learner, start), 2):
            way_K = place_K
            yield Step(step, total, taken=True, loss=None)
        lengths = LENGTHS if self.count else LENGTHS[:1]
        ends = [library.moved(start, length * way_K) for length in lengths]
        if start is not starts[0]:
            ends = [starts[0], *ends]
        set_weights(layer, ends[self.choose(learner, "end", ends, [1.0] * len(ends), END_GAIN)])
        yield Step(total, total, taken=False, loss=None)

    def choose(
        self,
        learner: Learner,
        purpose: str,
        candidates: Sequence[Weights],
        prior: Sequence[float],
        gain: float,
    ) -> int:
        """The number of the candidate that the units choose."""
        rows = (votes(learner, self.draws, purpose, candidates, unit, gain) for unit in self.units)
        return choose(rows, np.array(prior), self.noise_multiplier, self.noise)

    def descend(self, learner: Learner, start: Weights) -> Iterator[NDArray[np.float64]]:
        """After each step, the place way_K along the directions."""
        library, layer, steps = self.library, learner.layer, self.count
        total = PrivateSum(library.clip, self.noise_multiplier)
        way_K = speed_K = before_K = np.zeros(len(library.flat_directions))
        rate = PATH * library.reach / steps if steps else 0.0

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
            if mean_K @ before_K < 0:
                rate, speed_K = rate * TURNED, 0.0 * speed_K
            speed_K = MOMENTUM * speed_K - kept * mean_K / library.clip
            way_K, before_K = way_K + rate * speed_K, mean_K
            yield way_K


def kept_share(directions: int, noise: float) -> float:
    """How much of a noisy mean gradient is used: the share of its square that is not noise (Wiener).

    noise: the standard deviation of the noise along one direction, in units of `clip`.

    >>> kept_share(16, 0.0), kept_share(16, 0.125)
    (1.0, 0.5)
    """
    return SIGNAL**2 / (SIGNAL**2 + directions * noise**2)


def votes(
    learner: Learner, draws: Draws, purpose: str, candidates: Sequence[Weights], unit: Unit, gain: float
) -> NDArray[np.float64]:
    """row_J: the mean gain in IoU of the unit's images over the first candidate, in units of `gain`."""
    gains = []
    for index, image in zip(unit.images, unit.ids, strict=True):
        spec, generator = as_measured(learner.spec), draws.generator(purpose, image)
        drawn = draw_instances(learner.examples[index], learner.backbone, spec, "box", generator)
        if drawn is not None:
            gains.append(iou_of_each(learner, candidates, drawn))
    if not gains:
        return np.zeros(len(candidates))
    iou_J = np.mean(gains, axis=0)
    votes_J: NDArray[np.float64] = (iou_J - iou_J[0]) / gain
    return votes_J


def iou_of_each(learner: Learner, candidates: Sequence[Weights], drawn: Drawn) -> NDArray[np.float64]:
    """The mean IoU of one image's instances under each candidate."""
    found = []
    for weights in candidates:
        set_weights(learner.layer, weights)
        found.append(float(iou_and_estimate(learner.layer, learner.backbone, drawn)[0]))
    return np.array(found)
