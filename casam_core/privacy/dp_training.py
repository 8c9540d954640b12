"""DP-SGD: clipped gradients of all units or of a Poisson sample, discrete Gaussian noise (Abadi et al. 2016).

The trainer of Alignment Layers (casam_core.model.training) uses `PrivateSteps`. The gradients of the images
of a unit are added before they are clipped. A unit's gradient has the same bits whichever other units are in
the sample: it is computed one image at a time, and every draw has a generator of its own. SAM is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_core.config.scenario import PrivacySpec
from casam_core.model.training import (
    Learner,
    Step,
    add_finder_gradient,
    decode_batch,
    draw_instances,
    kind_of_prompt,
)
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units
from casam_core.seeding import Draws

FASTER, NOISY = 3.0, 0.4
"""The learning rate of steps at the default sampling rate, as a multiple of that of a form; and the noise of
a mean gradient, in units of `clip`, from which on these steps are shorter."""

Gradient = Callable[[int, Unit], None]
"""(step, unit) -> leave the sum of its images' gradients in `.grad` of the model's parameters, unclipped.

It must not depend on other units: each draw comes from a generator of (step, image id).
"""


@dataclass(frozen=True)
class PrivateSteps:
    """The steps of one private round, for `train_layer`; casam_core.privacy.accounting.round_mechanism is the
    cost.

    Losses are not reported, because they have no noise.

    Args:
        units: indices into the training images.
        noise: draws the samples and the noise.
        draws: of this round; for the instances and prompts, which protect nothing.
    """

    units: Units
    privacy: PrivacySpec
    noise_multiplier: float
    noise: NoiseSource
    draws: Draws

    @property
    def rate(self) -> float:
        """The probability that a unit takes part in a step."""
        return self.privacy.rate(self.units.count)

    @property
    def expected(self) -> float:
        """The expected number of units in a step."""
        return max(1.0, self.rate * self.units.count)

    def __call__(self, learner: Learner) -> Iterator[Step]:
        faster = 1.0
        if self.privacy.sampling_rate is None:
            faster = FASTER * NOISY / max(NOISY, self.noise_multiplier / self.expected)
        yield from take_private_steps(
            learner.layer,
            self,
            lambda step, unit: add_gradients(learner, self.draws, step, unit),
            self.privacy.learning_rate or faster * learner.learning_rate,
        )


def take_private_steps(
    model: nn.Module, how: PrivateSteps, gradient: Gradient, learning_rate: float
) -> Iterator[Step]:
    """Train any model in place with Adam.

    The gradient of a step is the sum of the clipped gradients of the sampled units, plus noise, divided by
    the expected number of units. A step without sampled units is only noise, as the accountant assumes.
    """
    units, privacy = how.units, how.privacy
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    total = PrivateSum(privacy.clip, how.noise_multiplier)

    def row_of(step: int, unit: Unit) -> NDArray[np.float64]:
        optimiser.zero_grad()
        gradient(step, unit)
        return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

    for step in range(1, privacy.steps + 1):
        sampled = [unit for unit in units if how.noise.takes_part(step, unit.name, how.rate)]
        rows = (row_of(step, unit) for unit in sampled)
        noisy_D = total.release(rows, sum(p.numel() for p in parameters), how.noise)
        set_gradients(parameters, noisy_D / how.expected)
        optimiser.step()
        yield Step(step, privacy.steps, taken=True, loss=None)
    optimiser.zero_grad()


def flat(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    """All numbers of the parts in one row."""
    return np.concatenate([part.detach().cpu().double().numpy().ravel() for part in parts])


def set_gradients(parameters: Sequence[nn.Parameter], gradient_D: NDArray[np.float64]) -> None:
    """The inverse of `flat`: one part of gradient_D for every parameter."""
    start = 0
    for p in parameters:
        part = torch.from_numpy(gradient_D[start : start + p.numel()])
        p.grad = part.to(p.dtype).to(p.device).view_as(p)  # no float64 on mps
        start += p.numel()


def add_gradients(learner: Learner, draws: Draws, step: int, unit: Unit) -> None:
    """Gradient of an Alignment Layer: see `Gradient`.

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
