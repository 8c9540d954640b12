"""Two noisy numbers of a task's own scores, and the threshold they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_scores import NARROWEST, describe_scores, scores_like
from casam_core.privacy.units import single_images, units_of
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import ROUTERS, build_router, router_spec
from tests.banks import random_frame

NO_NOISE = NoiseSource.seeded(0)
TWO_UNITS = units_of(["0", "1", "2"], ["a", "b", "b"], "group", most=2)


@pytest.mark.parametrize("floor", [0.0, -9.0])
def test_the_two_numbers_by_hand(floor: float) -> None:
    """Public scores of sinh(2) above the floor count as 1; the task's are sinh(0.5) and sinh(1), twice,
    two images in one unit."""
    public = floor + np.full(5, np.sinh(2.0))
    own = floor + np.sinh(np.array([0.5, 1.0, 1.0]))
    mean, spread = describe_scores(own, TWO_UNITS, public, floor, 0.0, NO_NOISE)
    assert mean == pytest.approx(0.75, abs=1e-5)  # of 0.5 and 1.0
    assert spread == pytest.approx(0.25, abs=1e-5)


def test_no_unit_changes_the_numbers_by_more_than_the_sensitivity() -> None:
    """Rows (x, x^2) with x in 0..1: whatever an image scores, also no number at all."""
    public = np.full(5, 1.0)
    for score in (-1e30, 0.0, 1e30, float("inf"), float("nan")):
        rest = describe_scores(np.array([0.5, score]), single_images(2), public, 0.0, 0.0, NO_NOISE)
        assert np.isfinite(rest).all()
        assert 0 <= rest[0] <= np.arcsinh(1.0)
        assert rest[1] >= NARROWEST * np.arcsinh(1.0)


def test_scores_are_drawn_from_what_was_described_alone() -> None:
    drawn = scores_like(np.array([1.0, 0.1]), -3.0, 20_000, seed=0)
    assert np.arcsinh(drawn + 3).mean() == pytest.approx(1.0, abs=0.01)
    assert np.arcsinh(drawn + 3).std() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("kind", [kind for kind, entry in ROUTERS.items() if entry.private])
def test_no_image_scores_below_the_floor(kind: str) -> None:
    router = build_router(router_spec(kind, {"epochs": 2, "frame": random_frame(8)}), FRAMES.here)
    f_NF = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    state = router.fit(router.sufficient_statistics(f_NF, 0))
    private = ROUTERS[kind].private
    assert private is not None
    floor = private.lowest_score(router, state)
    assert all(router.score(scale * f_F, state) >= floor for f_F in f_NF for scale in (0.0, 1.0, 30.0))
    if kind == "gaussian":
        assert router.score(f_NF.mean(0), state) == pytest.approx(floor, abs=1e-6)
