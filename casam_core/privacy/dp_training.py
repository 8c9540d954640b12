"""DP-SGD: Poisson samples, clipped gradients, Gaussian noise (Abadi et al. 2016).

The trainer of Alignment Layers (casam_core.model.training) uses `PrivateSteps`. Opacus computes per-sample
gradients, clips and accumulates them; the noise comes from casam_core.privacy.noise. The gradients of the
images of a unit are added before they are clipped. SAM is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from casam_core.config.scenario import PrivacySpec
from casam_core.model.training import Learner, Step, decode_batch
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units, add_rows, without_broken

IMAGES_AT_ONCE = 8
"""The largest number of images that a step processes at a time, to bound its memory."""


@dataclass(frozen=True)
class PrivateSteps:
    """The steps of one private round, for `train_layer`; casam_core.privacy.accounting.round_mechanism is the
    cost.

    Losses are not reported, because they have no noise.

    Args:
        units: indices into the training images.
        noise: draws the samples and the noise.
    """

    units: Units
    privacy: PrivacySpec
    noise_multiplier: float
    noise: NoiseSource

    def __call__(self, learner: Learner) -> Iterator[Step]:
        wrapped = PerSampleLayer(learner.layer, loss_reduction="sum")
        yield from take_private_steps(
            learner.layer,
            self,
            lambda pack: gradients(wrapped, learner, pack),
            self.privacy.learning_rate or learner.learning_rate,
        )
        wrapped.to_standard_module()


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from a NoiseSource instead of torch's generator."""

    def __init__(self, *args: object, noise: NoiseSource, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.noise = noise

    def add_noise(self) -> None:
        """grad = sum of clipped gradients + noise_multiplier * max_grad_norm * N(0, 1)."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for p in self.params:
            drawn = torch.from_numpy(self.noise.normal(*p.summed_grad.shape)) * deviation
            p.grad = (p.summed_grad + drawn.to(p.summed_grad)).view_as(p)


class PerSampleLayer(GradSampleModule):  # type: ignore[misc]
    """A layer whose backward pass leaves one gradient per image."""

    def own_decoder(self) -> None:
        """Forms that can be trained privately use the backbone's decoder."""
        return None


def take_private_steps(
    model: nn.Module,
    how: PrivateSteps,
    rows_of: Callable[[Units], list[Tensor]],
    learning_rate: float,
) -> Iterator[Step]:
    """Train any model in place with Adam.

    The gradient of a step is the sum of the clipped gradients of the sampled units, plus noise, divided by
    the expected number of units. A step without sampled units is only noise, as the accountant assumes.

    Args:
        rows_of: units -> their unclipped gradients: per parameter of `model`, one row per unit.
    """
    units, privacy = how.units, how.privacy
    optimiser = NoisyOptimizer(
        torch.optim.Adam(model.parameters(), lr=learning_rate),
        noise_multiplier=how.noise_multiplier,
        max_grad_norm=privacy.clip,
        expected_batch_size=max(1.0, privacy.sampling_rate * len(units)),
        noise=how.noise,
    )
    for done in range(1, privacy.steps + 1):
        sampled = [units[i] for i in how.noise.poisson_sample(len(units), privacy.sampling_rate)]
        optimiser.zero_grad()
        packs = list(packed(sampled)) or [[]]
        for number, pack in enumerate(packs, 1):
            for p, row in zip(model.parameters(), rows_of(pack), strict=True):
                p.grad_sample = row  # type: ignore[attr-defined]
            optimiser.signal_skip_step(number < len(packs))
            optimiser.step()
            if number < len(packs):
                optimiser.zero_grad()
        yield Step(done, privacy.steps, taken=True, loss=None)
    optimiser.zero_grad()


def packed(units: Units) -> Iterator[list[Sequence[int]]]:
    """Units in packs of up to IMAGES_AT_ONCE images; a larger unit has its own pack."""
    pack: list[Sequence[int]] = []
    for unit in units:
        if pack and sum(map(len, pack)) + len(unit) > IMAGES_AT_ONCE:
            yield pack
            pack = []
        pack.append(unit)
    if pack:
        yield pack


def gradients(wrapped: PerSampleLayer, learner: Learner, units: Units) -> list[Tensor]:
    """One row per unit and parameter: the gradient of the sum of its images' losses, unclipped.

    A row that is not finite becomes zero: a broken image must not stop the training, because an error would
    reveal it.
    """
    parameters = list(learner.layer.parameters())
    rows = [torch.zeros(len(units), *p.shape, dtype=p.dtype, device=p.device) for p in parameters]
    images = [(number, image) for number, unit in enumerate(units) for image in unit]
    for start in range(0, len(images), IMAGES_AT_ONCE):
        kept, drawn = [], []
        for number, image in images[start : start + IMAGES_AT_ONCE]:
            one = learner.draw(np.array([image]))
            kept += [number] * len(one)
            drawn += one
        if not drawn:
            continue
        wrapped.zero_grad()
        decode_batch(wrapped, learner.backbone, drawn).sum_of_image_losses.backward()  # type: ignore[no-untyped-call]
        add_rows(rows, parameters, kept)
    return without_broken(rows)
