"""A VAE router with differential privacy: DP-SGD from a public start.

At every institution, the network is first trained on the same public images (phantoms). Private steps then
adapt it to the task: the gradient of a unit is that of its images' losses together, clipped once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import round_mechanism
from casam_core.privacy.dp_training import PrivateRound, adam, take_private_steps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Unit, Units
from casam_core.routing.routers.base import Arrays, NoisyStatistics, PrivateRouter, PublicFeatures
from casam_core.routing.routers.vae import TaskVae, VaeRouter
from casam_core.seeding import Draws

PUBLIC_SEED = 0
"""Seed of the training on public images."""


def noisy_vae(router: VaeRouter, privacy: PrivacySpec, public: PublicFeatures) -> NoisyStatistics:
    """See `PrivateRouter.prepare`."""
    spec = router.spec
    start = router.fit(router.sufficient_statistics(Tensor(np.concatenate(public())), PUBLIC_SEED))

    def statistics(
        f_NF: Tensor, units: Units, *, noise_multiplier: float, draws: Draws, noise: NoiseSource
    ) -> Arrays:
        vae = TaskVae.of(start, f_NF.shape[1]).train()
        steps = take_private_steps(
            vae,
            PrivateRound(units, privacy, noise_multiplier, noise, draws),
            lambda step, unit: add_gradients(vae, f_NF, spec.beta, draws, step, unit),
            adam(vae, spec.learning_rate),
        )
        for _ in steps:
            pass
        return vae.eval().statistics(units.images)

    return statistics


def add_gradients(vae: TaskVae, f_NF: Tensor, beta: float, draws: Draws, step: int, unit: Unit) -> None:
    """Gradient of a VAE (casam_core.privacy.dp_training.Gradient); `draws` draws its latent samples."""
    for index, image in zip(unit.images, unit.ids, strict=True):
        latents = torch.Generator().manual_seed(draws.seed(step, image))
        vae.score(f_NF[index][None], beta, latents).sum().backward()  # type: ignore[no-untyped-call]


PRIVATE = PrivateRouter(
    prepare=noisy_vae,
    mechanism=round_mechanism,
    lowest_score=lambda router, state: 0.0,
)
"""It costs as much as a training round of a layer. Scores are at least 0, as the error and KL are."""
