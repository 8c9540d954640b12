"""A VAE router under differential privacy: DP-SGD from a public start, and two noisy numbers of its scores.

The network starts trained on public images (phantoms), the same at every institution. Private steps then move
it towards the task: the gradient of a unit is that of its images' losses together, clipped once. The
threshold needs to know how the task's own images score: each unit adds (x, x^2) to one noisy sum, where x in
0..1 is the mean score of its images between 0 and what public images score, on an asinh scale. A normal
distribution of that mean and spread stands for the scores from there on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from torch import Tensor

from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.dp_training import (
    round_mechanism,
    take_private_steps,
    unit_means,
    without_broken,
)
from casam_core.privacy.noise import NoiseSource
from casam_core.routers import build_router
from casam_core.routers.base import Arrays
from casam_core.routers.vae import TaskVae
from casam_core.scenario import PrivacySpec, RouterSpec

PUBLIC_SEED = 0
"""Of the public beginning."""
WIDEST_SCORES = 0.5
"""Quantile of public images' scores that counts as 1: what scores worse is unknown anyway."""
NARROWEST = 0.02
"""Least spread of x: noise may make it less than nothing."""


def vae_mechanism(spec: PrivacySpec, noise_multiplier: float) -> Mechanism:
    """What training the network costs: as much as a round of a layer."""
    return round_mechanism(spec, noise_multiplier)


def scores_mechanism(noise_multiplier: float) -> Mechanism:
    """What the two numbers of its scores cost."""
    return Mechanism(noise_multiplier)


def train_vae_privately(
    f_NF: Tensor,
    units: Sequence[Sequence[int]],
    public_NF: Tensor,
    router: RouterSpec,
    privacy: PrivacySpec,
    *,
    noise_multiplier: float,
    seed: int,
    noise: NoiseSource,
) -> Arrays:
    """Summary of a noisy network; costs `vae_mechanism`. units: indices of the images of every unit."""
    begun = build_router(router).finish(build_router(router).summarise(public_NF, PUBLIC_SEED))
    vae = TaskVae(f_NF.shape[1])
    vae.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in begun.items()})
    latents = torch.Generator().manual_seed(seed)
    wrapped = GradSampleModule(vae.train(), loss_reduction="sum")
    take_private_steps(
        vae,
        units,
        privacy,
        lambda pack: vae_gradients(vae, f_NF, pack, router.beta, latents),
        noise_multiplier=noise_multiplier,
        learning_rate=router.learning_rate,
        noise=noise,
        progress=lambda step, steps: None,
    )
    wrapped.to_standard_module()
    weights = {name: value.detach().numpy().copy() for name, value in vae.eval().state_dict().items()}
    return {"count": np.array([float(len(f_NF))]), **weights}


def vae_gradients(
    vae: TaskVae,
    f_NF: Tensor,
    units: Sequence[Sequence[int]],
    beta: float,
    latents: torch.Generator,
) -> list[Tensor]:
    """One row per unit and parameter: the gradient of the sum of its images' losses, unclipped.

    vae: wrapped by Opacus. latents: the noise by which the network samples; it is not the privacy's.
    """
    parameters = list(vae.parameters())
    rows = [torch.zeros(len(units), *p.shape, dtype=p.dtype) for p in parameters]
    if not units:
        return rows
    index = torch.tensor([number for number, unit in enumerate(units) for _ in unit])
    images = [image for unit in units for image in unit]
    vae.zero_grad()
    vae.score(f_NF[images], beta, latents).sum().backward()  # type: ignore[no-untyped-call]
    for p, row in zip(parameters, rows, strict=True):
        row.index_add_(0, index, p.grad_sample.to(row.dtype))  # type: ignore[attr-defined]
        p.grad_sample = None  # type: ignore[attr-defined]
    return without_broken(rows)


def describe_scores(
    scores_N: NDArray[np.float64],
    units: Sequence[Sequence[int]],
    public_scores_N: NDArray[np.float64],
    noise_multiplier: float,
    noise: NoiseSource,
) -> NDArray[np.float64]:
    """(mean, standard deviation) of the task's scores on the asinh scale, noisy; costs `scores_mechanism`.

    Each unit's row (x, x^2) has an L2 norm of at most sqrt(2).
    """
    widest = max(float(np.arcsinh(np.quantile(public_scores_N, WIDEST_SCORES))), 1e-9)
    x_U = np.clip(unit_means(np.arcsinh(scores_N)[:, None], units)[:, 0] / widest, 0, 1)
    x_U = np.where(np.isfinite(x_U), x_U, 1.0)
    rows = np.column_stack([x_U, x_U**2])
    noisy = (rows.sum(0) + noise_multiplier * np.sqrt(2) * noise.normal(2)) / len(units)
    mean = float(np.clip(noisy[0], 0, 1))
    spread = float(np.sqrt(np.clip(noisy[1] - mean**2, NARROWEST**2, 0.25)))
    return np.array([mean * widest, spread * widest])


def scores_like(described: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """Scores drawn from what was described: stand-ins for images that may not be scored again."""
    mean, spread = described
    drawn: NDArray[np.float64] = np.sinh(mean + spread * np.random.default_rng(seed).standard_normal(count))
    return drawn
