"""DP-SGD for an Alignment Layer: Poisson samples, clipped gradients, Gaussian noise (Abadi et al. 2016).

Per-sample gradients, clipping and accumulation are Opacus'; the noise is ours (casam_core.privacy.noise).
A unit is one image or a group of them (patient, slide): the gradients of a group's images are added and
clipped once, as one. SAM is frozen and learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import (
    Example,
    Progress,
    TrainingResult,
    check_converged,
    decode_batch,
    draw_batch,
)
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.noise import NoiseSource

IMAGES_AT_ONCE = 8
"""More images of a step are taken in turns, so that memory does not grow with the sample."""

PRIVATE_FORMS = ("casam", "residual", "low_rank", "scale_shift")
"""Forms that stand between encoder and decoder, and so see one image's embedding for one image's gradient."""


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from a NoiseSource in place of torch's generator."""

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


def round_mechanism(spec: PrivacySpec, noise_multiplier: float) -> Mechanism:
    """What one private round costs."""
    return Mechanism(noise_multiplier, spec.sampling_rate, spec.steps)


def train_privately(
    layer: AlignmentLayer,
    backbone: Backbone,
    load_example: Callable[[int], Example],
    units: Sequence[Sequence[int]],
    spec: TrainingSpec,
    privacy: PrivacySpec,
    *,
    noise_multiplier: float,
    learning_rate: float,
    rng: np.random.Generator,
    noise: NoiseSource,
    progress: Progress,
) -> TrainingResult:
    """Train `layer` in place for one private round with Adam; it costs `round_mechanism`.

    units: indices of the images of every unit. The gradient of a step is the sum over the sampled units of
    their clipped gradients plus noise, over the expected number of units: a step without any sampled unit
    is noise alone, as the accountant assumes. rng: instances and prompts. noise: samples and noise.
    Raises RunError when the layer is no number any more.
    """
    layer.to(backbone.compute.device).train()
    wrapped = PerSampleLayer(layer, loss_reduction="sum")
    take_private_steps(
        layer,
        units,
        privacy,
        lambda pack: gradients(wrapped, backbone, load_example, pack, spec, rng),
        noise_multiplier=noise_multiplier,
        learning_rate=learning_rate,
        noise=noise,
        progress=progress,
    )
    wrapped.to_standard_module()
    layer.eval()
    check_converged(layer, [], learning_rate)
    # The losses are not returned: nobody may see them, and nothing is decided by them.
    return TrainingResult(steps=privacy.steps, losses=())


def take_private_steps(
    model: nn.Module,
    units: Sequence[Sequence[int]],
    privacy: PrivacySpec,
    rows_of: Callable[[Sequence[Sequence[int]]], list[Tensor]],
    *,
    noise_multiplier: float,
    learning_rate: float,
    noise: NoiseSource,
    progress: Progress,
) -> None:
    """The steps of `round_mechanism` with Adam, whatever is trained.

    rows_of: for some units, the unclipped gradient of each, a row per unit and parameter of `model`.
    """
    optimiser = NoisyOptimizer(
        torch.optim.Adam(model.parameters(), lr=learning_rate),
        noise_multiplier=noise_multiplier,
        max_grad_norm=privacy.clip,
        expected_batch_size=max(1.0, privacy.sampling_rate * len(units)),
        noise=noise,
    )
    for step in range(1, privacy.steps + 1):
        sampled = [units[i] for i in noise.poisson_sample(len(units), privacy.sampling_rate)]
        optimiser.zero_grad()
        packs = list(packed(sampled)) or [[]]
        for number, pack in enumerate(packs, 1):
            for p, row in zip(model.parameters(), rows_of(pack), strict=True):
                p.grad_sample = row  # type: ignore[attr-defined]
            optimiser.signal_skip_step(number < len(packs))
            optimiser.step()
            if number < len(packs):
                optimiser.zero_grad()
        progress(step, privacy.steps)
    optimiser.zero_grad()


def packed(units: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Units in turns of up to IMAGES_AT_ONCE images; a larger unit is a turn of its own."""
    pack: list[Sequence[int]] = []
    for unit in units:
        if pack and sum(map(len, pack)) + len(unit) > IMAGES_AT_ONCE:
            yield pack
            pack = []
        pack.append(unit)
    if pack:
        yield pack


def gradients(
    wrapped: PerSampleLayer,
    backbone: Backbone,
    load_example: Callable[[int], Example],
    units: Sequence[Sequence[int]],
    spec: TrainingSpec,
    rng: np.random.Generator,
) -> list[Tensor]:
    """One row per unit and parameter: the gradient of the sum of its images' losses, unclipped.

    A row that is not finite says nothing and becomes zero: one broken image must not stop the others,
    nor show by stopping them.
    """
    parameters = list(wrapped._module.parameters())
    rows = [torch.zeros(len(units), *p.shape, dtype=p.dtype, device=p.device) for p in parameters]
    images = [(number, image) for number, unit in enumerate(units) for image in unit]
    for start in range(0, len(images), IMAGES_AT_ONCE):
        turn = images[start : start + IMAGES_AT_ONCE]
        kept, drawn = [], []
        for number, image in turn:
            one = draw_batch(np.array([image]), load_example, backbone, spec, rng)
            kept += [number] * len(one)
            drawn += one
        if not drawn:
            continue
        wrapped.zero_grad()
        decode_batch(wrapped, backbone, drawn).sum_of_image_losses.backward()  # type: ignore[no-untyped-call]
        index = torch.tensor(kept)
        for p, row in zip(parameters, rows, strict=True):
            row.index_add_(0, index.to(row.device), p.grad_sample.to(row.dtype))
            p.grad_sample = None
    return without_broken(rows)


def without_broken(rows: list[Tensor]) -> list[Tensor]:
    """Zeros for every unit whose gradient is not finite in any parameter."""
    usable = torch.stack([row.flatten(1).isfinite().all(1) for row in rows]).all(0)
    return [torch.where(usable.to(row.device).view(-1, *[1] * (row.dim() - 1)), row, 0.0) for row in rows]


def units_of(groups: Sequence[str], unit: str) -> list[list[int]]:
    """Indices of every unit: each image by itself, or the images of each group, in order of appearance."""
    if unit == "image":
        return [[i] for i in range(len(groups))]
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return list(members.values())


def unit_means(values_ND: NDArray[np.float64], units: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """One row per unit: the mean over its images."""
    return np.stack([values_ND[list(unit)].mean(0) for unit in units])
