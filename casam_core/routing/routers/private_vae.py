"""A VAE router with differential privacy: DP-SGD from a public start.

At every institution, the network is first trained on the same public images (phantoms). Private steps then
adapt it to the task: the gradient of a unit is that of its images' losses together, clipped once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import round_mechanism
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units, add_rows, without_broken
from casam_core.routing.routers.base import Arrays, NoisyStatistics, PrivateRouter
from casam_core.routing.routers.vae import TaskVae, VaeRouter, VaeSpec

PUBLIC_SEED = 0
"""Seed of the training on public images."""


def noisy_vae(
    router: VaeSpec, privacy: PrivacySpec, public: Sequence[NDArray[np.float64]]
) -> NoisyStatistics:
    """See `PrivateRouter.prepare`."""
    # Opacus takes a second to import, and most processes do not train routers privately.
    from opacus import GradSampleModule

    from casam_core.privacy.dp_training import PrivateSteps, take_private_steps

    plain = VaeRouter(router)
    start = plain.fit(plain.sufficient_statistics(Tensor(np.concatenate(public)), PUBLIC_SEED))

    def statistics(
        f_NF: Tensor, units: Units, *, noise_multiplier: float, seed: int, noise: NoiseSource
    ) -> Arrays:
        vae = TaskVae.of(start, f_NF.shape[1])
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
        return vae.eval().statistics(len(f_NF))

    return statistics


def vae_gradients(
    vae: TaskVae,
    f_NF: Tensor,
    units: Units,
    beta: float,
    latents: torch.Generator,
) -> list[Tensor]:
    """One row per unit and parameter: the gradient of the sum of its images' losses, unclipped.

    vae: wrapped by Opacus. latents: draws the latent samples of the VAE; they protect nothing.
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


PRIVATE = PrivateRouter(
    prepare=noisy_vae,
    mechanism=round_mechanism,
    lowest_score=lambda router, state: 0.0,
)
"""It costs as much as a training round of a layer. Scores are at least 0, as the error and KL are."""
