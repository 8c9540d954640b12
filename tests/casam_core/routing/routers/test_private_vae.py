"""A VAE router with noise: its gradients, its two numbers, and what it may read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Unit, single_images, units_of
from casam_core.routing.routers import VaeSpec, build_router
from casam_core.routing.routers.private_vae import add_gradients, noisy_vae
from casam_core.routing.routers.vae import TaskVae, VaeRouter
from casam_core.seeding import Draws

WIDTH = 16
DRAWS = Draws(4, ("test",))
ROUTER = VaeSpec(epochs=20)


def features(count: int, mean: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + 0.1 * torch.randn(count, WIDTH, generator=generator)


PUBLIC = torch.cat([features(20, 1.0, 1), features(20, -1.0, 2)])


def public() -> list[np.ndarray]:
    return [PUBLIC.numpy()]


def trained(
    noise_multiplier: float, steps: int = 4, seed: int = 0, images: int = 30
) -> dict[str, np.ndarray]:
    return dict(
        noisy_vae(VaeRouter(ROUTER), PrivacySpec(steps=steps, sampling_rate=0.5), public)(
            features(images, 0.3, 3),
            single_images(images),
            noise_multiplier=noise_multiplier,
            draws=DRAWS,
            noise=NoiseSource.seeded(seed),
        )
    )


def test_a_units_gradient_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    vae, f_NF = TaskVae(WIDTH), features(5, 0.3, 3)
    units = units_of([str(i) for i in range(5)], ["a", "b", "a", "c", "c"], "group", most=2)

    def parts_of(some: Sequence[Unit]) -> dict[str, bytes]:
        found = {}
        for unit in some:
            vae.zero_grad()
            add_gradients(vae, f_NF, ROUTER.beta, DRAWS, 1, unit)
            gradients = [p.grad for p in vae.parameters() if p.grad is not None]
            found[unit.name] = b"".join(part.numpy().tobytes() for part in gradients)
        return found

    everybody = parts_of(units.members)
    assert len(set(everybody.values())) == 3
    for left_out in units:
        for name, part in parts_of([unit for unit in units if unit != left_out]).items():
            assert part == everybody[name]


def test_little_noise_moves_the_router_towards_its_task() -> None:
    router = build_router(ROUTER)
    public = router.fit(router.sufficient_statistics(PUBLIC, 0))
    own = router.fit(trained(noise_multiplier=0.01, steps=40, images=12))
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
            noisy_vae(VaeRouter(ROUTER), spec, public)(
                f_NF, single_images(5),
                noise_multiplier=1.0, draws=DRAWS, noise=NoiseSource.seeded(0),
            )
        )  # fmt: skip

    one, other = router_of(features(5, 0.3, 3)), router_of(features(5, 7.0, 8))
    assert all(np.array_equal(one[name], other[name]) for name in one)
