"""Router quality, measured on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from casam_bench.quality.phantom_features import Features
from casam_bench.quality.router_quality import Scores, false_positive_rate, judge, mean_of, measure
from casam_core.routing.routers import GaussianSpec


def clusters(distance: float) -> dict[str, Features]:
    """Six tasks, 60 images each, of 8 features, `distance` standard deviations apart."""
    rng = np.random.default_rng(0)
    centres = {task: rng.normal(size=8) for task in ("a", "b", "c", "d", "e", "f")}
    drawn = {
        task: (rng.normal(size=(60, 8)) + distance * centre / np.linalg.norm(centre)).astype(np.float32)
        for task, centre in centres.items()
    }
    return {task: {"attention": f, "moments": f} for task, f in drawn.items()}


def test_tasks_far_apart_are_recognised_and_unknown_ones_stand_out() -> None:
    found = measure(GaussianSpec(), clusters(60), images=16, split=0, twins=[("a", "b"), ("c", "d")])
    assert found.confused == 0
    assert found.accuracy == pytest.approx(1 - found.false_unknown)
    assert found.accuracy > 0.9
    assert (found.unknown, found.auroc, found.fpr95) == (1.0, 1.0, 0.0)


def test_tasks_that_are_the_same_cannot_be_told_apart() -> None:
    found = measure(GaussianSpec(), clusters(0), images=16, split=0, twins=[])
    assert found.accuracy < 0.5
    assert 0.3 < found.auroc < 0.7
    assert found.twins is None


def test_a_wider_margin_loses_fewer_known_images() -> None:
    tight, wide = (
        measure(GaussianSpec(margin=margin), clusters(60), images=16, split=0, twins=[])
        for margin in (0, 1.5)
    )
    assert wide.false_unknown < tight.false_unknown


def test_the_false_positive_rate_by_hand() -> None:
    # 20 unknown images at 1..20: 95 % of them lie at 2 or above, and so does one of four known ones.
    unknownness = np.array([*range(1, 21), -1.0, 0.0, 1.5, 3.0])
    positive = np.array([1] * 20 + [0] * 4)
    assert false_positive_rate(unknownness, positive) == 0.25


def test_the_mean_skips_splits_without_the_figure() -> None:
    assert mean_of([0.5, None, 1.0]) == 0.75
    assert mean_of([None, None]) is None


def test_thresholds_are_judged_by_what_they_let_through() -> None:
    # Two known tasks, scored under (a, b); c is unknown.
    scores = Scores(
        seen=["a", "b"],
        unseen=["c"],
        held_out={"a": np.array([1.0, 2.0]), "b": np.array([11.0, 12.0])},
        tests={
            "a": np.array([[1.0, 50.0], [3.0, 50.0]]),  # its own; beyond the threshold
            "b": np.array([[50.0, 12.0], [1.0, 13.0]]),  # its own; taken for a
            "c": np.array([[30.0, 20.0], [30.0, 11.0]]),  # unknown; taken for b
        },
    )
    found = judge(scores, [2.0, 12.0], twins=[("a", "b"), ("a", "c")])
    assert (found.accuracy, found.false_unknown, found.confused) == (0.5, 0.25, 0.25)
    assert (found.unknown, found.twins) == (0.5, 0.5)
    # Unknownness: known -1, 1, 0, -1 against unknown 8, -1: pairs won 4 + 1 tie-halves of 8.
    assert found.auroc == pytest.approx((4 + 2 * 0.5) / 8)
