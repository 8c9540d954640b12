"""The router's alternatives: threshold rules by hand, encoder depths as the encoder runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from casam_bench.quality.encoder_depths import listening, moments
from casam_bench.quality.router_choices import DEFAULT, RULES, concatenated, percentile_rule, student_rule
from casam_bench.quality.router_quality import Scores, judge
from casam_core.routing.threshold import choose_threshold


def test_the_student_rule_by_hand() -> None:
    # mean 2, s = 1, N = 3: t_2(0.95) = 2.91999, times sqrt(4 / 3).
    assert student_rule(0.05)(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 + 2.91999 * (4 / 3) ** 0.5)


def test_the_student_rule_loses_the_share_it_names() -> None:
    rng = np.random.default_rng(0)
    lost = [rng.normal() > student_rule(0.1)(rng.normal(size=8)) for _ in range(4000)]
    assert np.mean(lost) == pytest.approx(0.1, abs=0.015)


def test_the_default_rule_is_the_products() -> None:
    scores_N = np.array([1.0, 2.0, 4.0])
    (default,) = [rule for name, rule in RULES.items() if name.endswith("(default)")]
    assert default(scores_N) == choose_threshold(scores_N, DEFAULT)
    assert percentile_rule(0)(scores_N) < default(scores_N) < percentile_rule(3)(scores_N)


def test_a_rule_is_judged_by_what_it_lets_through() -> None:
    # Two known tasks, scored under (a, b); c is unknown. Thresholds: 2 for a, 12 for b.
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
    found = judge(scores, lambda scores_N: float(scores_N.max()), twins=[("a", "b"), ("a", "c")])
    assert (found.accuracy, found.false_unknown, found.confused) == (0.5, 0.25, 0.25)
    assert (found.unknown, found.twins) == (0.5, 0.5)
    # Unknownness: known -1, 1, 0, -1 against unknown 8, -1: pairs won 4 + 1 tie-halves of 8.
    assert found.auroc == pytest.approx((4 + 2 * 0.5) / 8)


def test_depths_are_heard_in_order_and_no_longer_than_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.ones(1, 5, 3)
    with listening(list(model)) as heard:
        model(x)
    assert [out.shape for out in heard] == [(1, 5, 4), (1, 5, 2)]
    model(x)
    assert len(heard) == 2


def test_moments_of_tokens_and_of_maps_are_the_same() -> None:
    z_1CHW = torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    tokens_1NC = z_1CHW.flatten(2).transpose(1, 2)
    np.testing.assert_array_equal(moments(tokens_1NC), moments(z_1CHW))
    assert moments(z_1CHW).shape == (6,)


def test_depths_stand_side_by_side() -> None:
    of_task = {"one": np.ones((2, 3), np.float32), "two": np.zeros((2, 1), np.float32)}
    assert concatenated(of_task, ("two", "one")).tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]
