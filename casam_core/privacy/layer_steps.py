"""Private training of an Alignment Layer, for the trainer of layers (casam_core.model.training).

SAM is frozen. Method dp_sgd starts from frozen SAM and moves by Adam; method public_start starts from a
public layer and filters its noisy gradients (casam_core.privacy.public_descent).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casam_core.model.forms import AlignmentLayer
from casam_core.model.layer_library import LayerLibrary
from casam_core.model.training import (
    Learner,
    Step,
    add_finder_gradient,
    decode_batch,
    draw_instances,
    kind_of_prompt,
)
from casam_core.privacy.dp_training import Move, PrivateRound, adam, parts_of, take_private_steps, trained
from casam_core.privacy.public_descent import PublicDescent
from casam_core.privacy.units import Unit
from casam_core.seeding import Draws

FASTER, NOISY = 3.0, 0.4
"""The learning rate of steps at the default sampling rate, as a multiple of that of a form; and the noise of
a mean gradient, in units of `clip`, from which on these steps are shorter."""


@dataclass(frozen=True)
class PrivateSteps(PrivateRound):
    """The steps of one private round, for `train_layer`. Losses are not reported, because they have no noise.

    Args:
        library: for method public_start.
    """

    library: LayerLibrary | None = None

    def __call__(self, learner: Learner) -> Iterator[Step]:
        yield from take_private_steps(
            learner.layer,
            self,
            lambda step, unit: add_gradients(learner, self.draws, step, unit),
            self.adam(learner) if self.privacy.method == "dp_sgd" else self.descent(learner.layer),
        )

    def adam(self, learner: Learner) -> Move:
        """Adam, with the learning rate of the scenario or of the form."""
        faster = 1.0
        if self.privacy.sampling_rate is None:
            faster = FASTER * NOISY / max(NOISY, self.noise_multiplier / self.expected)
        return adam(learner.layer, self.privacy.learning_rate or faster * learner.learning_rate)

    def descent(self, layer: AlignmentLayer) -> Move:
        """From where the layer is, first the library's joint layer; the weights that layers share stay."""
        assert self.library is not None  # client.dp.noisy_layer refuses a round without one
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in self.library.joint)
        free, noise = trained(layer), self.noise_multiplier / self.expected
        way = PublicDescent(self.library, list(free), self.privacy.clip, noise, self.privacy.steps)
        parameters = list(free.values())

        def move(gradient_D: NDArray[np.float64]) -> None:
            for parameter, part in zip(parameters, parts_of(way.step(gradient_D), parameters), strict=True):
                parameter.data += part

        return move


def add_gradients(learner: Learner, draws: Draws, step: int, unit: Unit) -> None:
    """Gradient of an Alignment Layer: see casam_core.privacy.dp_training.Gradient.

    Of the Dice loss alone: the focal loss of a few confident pixels would fill the clip, and its few steps
    lower the IoU before they raise it.
    """
    kind = kind_of_prompt(learner.spec, draws.generator(step))
    for index, image in zip(unit.images, unit.ids, strict=True):
        example, generator = learner.examples[index], draws.generator(step, image)
        drawn = draw_instances(example, learner.backbone, learner.spec, kind, generator)
        if drawn is not None:
            batch = decode_batch(learner.layer, learner.backbone, [drawn])
            batch.overlap_loss().backward()  # type: ignore[no-untyped-call]
            add_finder_gradient(learner.layer, learner.backbone, [drawn])
