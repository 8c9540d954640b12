"""The bench of routers with and without noise, on features whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from casam_bench.quality.frame_quality import (
    DELTA,
    IMAGES,
    PRIVACY,
    Maker,
    Row,
    draw,
    lost_in_time,
    real_tasks,
    router_noise,
)
from casam_core.privacy.accounting import epsilon_of
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import GaussianSpec, PublicFrameSpec, build_router
from casam_use.frame_fit import make_frame
from client.dp.plan import description

Groups = dict[str, NDArray[np.float32]]


def clusters(names: str, distance: float) -> Groups:
    """One task a letter, 48 images of 40 features; the tasks are `distance` standard deviations apart."""
    rng = np.random.default_rng(ord(names[0]))
    centres = {name: rng.normal(size=40) for name in names}
    return {
        name: (rng.normal(size=(2 * IMAGES, 40)) + distance * centre / np.linalg.norm(centre)).astype(
            np.float32
        )
        for name, centre in centres.items()
    }


def maker(folder: Path, kind: str, row: Row | None = None) -> Maker:
    """A learner with a frame of public clusters that are none of the tasks."""
    public = {name: f_NF.astype(np.float64) for name, f_NF in clusters("uvwxyz", 60).items()}
    frame = FRAMES.keep(make_frame(public, {}).to_bytes(), folder)
    spec = GaussianSpec() if kind == "gaussian" else PublicFrameSpec(frame=frame)
    return Maker(spec, build_router(spec, folder), list(public.values()), router_noise(spec, row))


def test_tasks_far_apart_are_recognised_and_unknown_ones_stand_out(tmp_path: Path) -> None:
    found = draw(maker(tmp_path, "public_frame"), [clusters("abc", 60), clusters("def", 60)], 0)
    assert (found["confused"], found["auroc"]) == (0, 1)
    assert found["accuracy"] > 0.95


def test_a_covariance_tells_its_members_and_a_mean_in_a_public_frame_hardly_does(tmp_path: Path) -> None:
    # 24 images have a covariance of 23 directions, so only members lie in their span.
    tasks = [clusters("abc", 60)]
    told = {kind: draw(maker(tmp_path, kind), tasks, 0) for kind in ("gaussian", "public_frame")}
    assert told["gaussian"]["member_score"] > 0.99
    assert told["public_frame"]["member_score"] < 0.75
    noisy = draw(maker(tmp_path, "public_frame", row=(1.0, 0.5)), tasks, 0)
    assert 0.35 < noisy["member_ratio"] < 0.65


@pytest.mark.parametrize("kind", ["gaussian", "public_frame"])
def test_the_noise_of_a_row_costs_the_routers_share(tmp_path: Path, kind: str) -> None:
    made = maker(tmp_path, kind, row=(3.0, 0.5))
    cost = epsilon_of(description(PRIVACY, made.spec, made.noise, 24), DELTA)
    assert cost == pytest.approx(0.5 * 3.0, rel=0.01)


def test_real_tasks_are_folders_with_images_and_masks(tmp_path: Path) -> None:
    for folder in ("b/images", "b/masks", "a/images", "a/masks", "unlabelled/images"):
        (tmp_path / folder).mkdir(parents=True)
    assert real_tasks(tmp_path) == ["a", "b"]


def test_frames_that_drift_away_are_lost_and_those_that_stay_are_not(tmp_path: Path) -> None:
    still = clusters("a", 60)["a"]
    drifting = np.concatenate([still[:IMAGES], clusters("b", 60)["b"][IMAGES:]])
    learner = maker(tmp_path, "public_frame")
    assert lost_in_time(learner, still, IMAGES) == lost_in_time(learner, still, 8) == 0
    assert (
        lost_in_time(learner, drifting, IMAGES) == 1
    )  # every frame after the learned ones is another task's
