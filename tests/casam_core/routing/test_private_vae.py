"""A VAE router with noise: its gradients, its two numbers, and what it may read."""

from __future__ import annotations

import numpy as np
import torch
from opacus import GradSampleModule
from torch import Tensor

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.noise import NoiseSource
from casam_core.routing.routers import VaeSpec, build_router
from casam_core.routing.routers.private_vae import noisy_vae, vae_gradients
from casam_core.routing.routers.vae import TaskVae

WIDTH = 16
ROUTER = VaeSpec(epochs=20)


def features(count: int, mean: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + 0.1 * torch.randn(count, WIDTH, generator=generator)


PUBLIC = torch.cat([features(20, 1.0, 1), features(20, -1.0, 2)])


def trained(
    noise_multiplier: float, steps: int = 40, seed: int = 0, images: int = 30
) -> dict[str, np.ndarray]:
    units = [[i] for i in range(images)]
    return dict(
        noisy_vae(ROUTER, PrivacySpec(steps=steps, sampling_rate=0.5), [PUBLIC.numpy()])(
            features(images, 0.3, 3),
            units,
            noise_multiplier=noise_multiplier,
            seed=4,
            noise=NoiseSource.seeded(seed),
        )
    )


def test_a_units_gradient_is_that_of_its_images_alone() -> None:
    """Opacus' per-sample gradients, summed by unit, against one plain backward pass per unit."""
    torch.manual_seed(0)
    vae, plain = TaskVae(WIDTH), TaskVae(WIDTH)
    plain.load_state_dict(vae.state_dict())
    f_NF, units = features(5, 0.3, 3), [[0, 2], [1], [3, 4]]
    GradSampleModule(vae.train(), loss_reduction="sum")
    # The same latent draws: a batch draws for all its images at once.
    drawn = torch.randn(5, 64, generator=torch.Generator().manual_seed(9))
    rows = vae_gradients(vae, f_NF, units, ROUTER.beta, torch.Generator().manual_seed(9))
    order = [image for unit in units for image in unit]
    for number, unit in enumerate(units):
        plain.zero_grad()
        for image in unit:
            mu, logvar = plain.encode(f_NF[[image]])
            latent = mu + drawn[[order.index(image)]] * torch.exp(0.5 * logvar)
            error = (plain.decode(latent) - f_NF[[image]]).pow(2).mean()
            divergence = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()
            (error + ROUTER.beta * divergence).backward()
        for row, parameter in zip(rows, plain.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(row[number], parameter.grad, rtol=1e-4, atol=1e-5)


def test_no_unit_at_all_gives_no_rows_and_a_broken_one_says_nothing() -> None:
    vae = TaskVae(WIDTH)
    GradSampleModule(vae.train(), loss_reduction="sum")
    generator = torch.Generator().manual_seed(0)
    empty = vae_gradients(vae, PUBLIC, [], 1.0, generator)
    assert [len(row) for row in empty] == [0] * len(list(vae.parameters()))
    broken = torch.full((2, WIDTH), float("nan"))
    broken[1] = 0.5
    rows = vae_gradients(vae, broken, [[0], [1]], 1.0, generator)
    assert all(not row[0].any() for row in rows)
    assert any(row[1].any() for row in rows)


def test_little_noise_moves_the_router_towards_its_task() -> None:
    router = build_router(ROUTER)
    public = router.fit(router.sufficient_statistics(PUBLIC, 0))
    own = router.fit(trained(noise_multiplier=0.01, steps=200))
    held_out = features(20, 0.3, 5)
    before = np.mean([router.score(f_F, public) for f_F in held_out])
    after = np.mean([router.score(f_F, own) for f_F in held_out])
    assert after < 0.9 * before


def test_the_same_noise_gives_the_same_router_and_other_noise_another() -> None:
    one, again, other = trained(1.0), trained(1.0), trained(1.0, seed=1)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["enc_fc1.weight"], other["enc_fc1.weight"])


def test_what_no_step_samples_is_noise_alone() -> None:
    """With the same draws, images that are never sampled cannot be told from others."""
    spec = PrivacySpec(steps=3, sampling_rate=1e-9)

    def router_of(f_NF: Tensor) -> dict[str, np.ndarray]:
        return dict(
            noisy_vae(ROUTER, spec, [PUBLIC.numpy()])(
                f_NF, [[i] for i in range(5)],
                noise_multiplier=1.0, seed=4, noise=NoiseSource.seeded(0),
            )
        )  # fmt: skip

    one, other = router_of(features(5, 0.3, 3)), router_of(features(5, 7.0, 8))
    assert all(np.array_equal(one[name], other[name]) for name in one)
