"""DP-SGD: clipped gradients of all units or of a Poisson sample, discrete Gaussian noise (Abadi et al. 2016).

The gradients of the images of a unit are added before they are clipped. A unit's gradient has the same bits
whichever other units are in the sample: it is computed one image at a time, and every draw has a generator of
its own. casam_core.privacy.layer_steps trains Alignment Layers with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_core.config.scenario import PrivacySpec
from casam_core.model.training import Step
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units
from casam_core.seeding import Draws

Gradient = Callable[[int, Unit], None]
"""(step, unit) -> leave the sum of its images' gradients in `.grad` of the model's parameters, unclipped.

It must not depend on other units: each draw comes from a generator of (step, image id).
"""
Move = Callable[[NDArray[np.float64]], None]
"""noisy mean gradient_D -> move the parameters that require a gradient, in place."""


@dataclass(frozen=True)
class PrivateRound:
    """What one round of private steps needs; casam_core.privacy.accounting.round_mechanism is the cost.

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


def take_private_steps(model: nn.Module, how: PrivateRound, gradient: Gradient, move: Move) -> Iterator[Step]:
    """Train any model in place.

    The gradient of a step is the sum of the clipped gradients of the sampled units, plus noise, divided by
    the expected number of units. A step without sampled units is only noise, as the accountant assumes.
    """
    units, privacy, parameters = how.units, how.privacy, list(trained(model).values())
    total = PrivateSum(privacy.clip, how.noise_multiplier)

    def row_of(step: int, unit: Unit) -> NDArray[np.float64]:
        model.zero_grad()
        gradient(step, unit)
        return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

    for step in range(1, privacy.steps + 1):
        sampled = [unit for unit in units if how.noise.takes_part(step, unit.name, how.rate)]
        rows = (row_of(step, unit) for unit in sampled)
        noisy_D = total.release(rows, sum(p.numel() for p in parameters), how.noise)
        move(noisy_D / how.expected)
        model.zero_grad()  # nothing of the last unit stays
        yield Step(step, privacy.steps, taken=True, loss=None)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adam(model: nn.Module, learning_rate: float) -> Move:
    """Steps of Adam."""
    parameters = list(trained(model).values())
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)

    def move(gradient_D: NDArray[np.float64]) -> None:
        for parameter, part in zip(parameters, parts_of(gradient_D, parameters), strict=True):
            parameter.grad = part
        optimiser.step()

    return move


def flat(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    """All numbers of the parts in one row."""
    return np.concatenate([part.detach().cpu().double().numpy().ravel() for part in parts])


def parts_of(row_D: NDArray[np.float64], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flat`: one part of row_D for every parameter, of its shape, type and device."""
    parts = np.split(row_D, np.cumsum([p.numel() for p in parameters])[:-1])
    return [
        torch.from_numpy(part).to(p.dtype).to(p.device).view_as(p)  # no float64 on mps
        for part, p in zip(parts, parameters, strict=True)
    ]
