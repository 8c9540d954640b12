"""A VAE router under differential privacy: DP-SGD from a public start.

The network starts trained on public images (phantoms), the same at every institution. Private steps then move
it towards the task: the gradient of a unit is that of its images' losses together, clipped once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from opacus import GradSampleModule
from torch import Tensor

from casam_core.config.scenario import PrivacySpec, RouterSpec
from casam_core.privacy.accounting import Mechanism
from casam_core.privacy.dp_training import (
    PrivateSteps,
    add_rows,
    round_mechanism,
    take_private_steps,
    without_broken,
)
from casam_core.privacy.noise import NoiseSource
from casam_core.routing.routers import build_router
from casam_core.routing.routers.base import Arrays
from casam_core.routing.routers.vae import TaskVae

PUBLIC_SEED = 0
"""Of the public beginning."""


def vae_mechanism(spec: PrivacySpec, noise_multiplier: float) -> Mechanism:
    """What training the network costs: as much as a round of a layer."""
    return round_mechanism(spec, noise_multiplier)


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
    steps = take_private_steps(
        vae,
        PrivateSteps(units, privacy, noise_multiplier, noise),
        lambda pack: vae_gradients(vae, f_NF, pack, router.beta, latents),
        router.learning_rate,
    )
    for _ in steps:
        pass
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
    images = [image for unit in units for image in unit]
    vae.zero_grad()
    vae.score(f_NF[images], beta, latents).sum().backward()  # type: ignore[no-untyped-call]
    add_rows(rows, parameters, [number for number, unit in enumerate(units) for _ in unit])
    return without_broken(rows)
