"""Rules for few validation images: each does by hand what its name says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casam_bench.quality.layer_rules import (
    CORRECTIONS,
    RULES,
    calibration_error,
    calibrations,
    floors,
    gains_of,
    mean_error,
    share_kept,
)


def test_a_small_gain_that_varies_is_kept_by_its_mean_but_not_by_a_test() -> None:
    gains = np.array([0.05, -0.03, 0.04, -0.04, 0.02, -0.02])
    assert RULES["mean"](gains)
    assert not RULES["t-test, level 0.2"](gains)


def test_a_gain_of_every_image_passes_all_rules_and_none_of_them_fails_on_equal_images() -> None:
    for name, rule in RULES.items():
        assert rule(np.array([0.05, 0.06, 0.04, 0.05, 0.07, 0.05])), name
        assert rule(np.zeros(6)) == (name == "no floor"), name


def test_corrections_by_hand() -> None:
    # The decoder says 0.9 and 0.7, the masks have 0.8 and 0.4: errors 0.1 and 0.3, a line of slope 2.
    pairs, new = np.array([[0.9, 0.8], [0.7, 0.4]]), np.array([0.8])
    found = {name: float(fit(pairs)(new)[0]) for name, fit in CORRECTIONS.items()}
    assert found == pytest.approx({"none": 0.8, "shift": 0.6, "line": 0.6, "mean of validation": 0.6})


def test_the_calibration_error_cancels_within_a_tenth_and_not_between_tenths() -> None:
    within = np.array([[0.85, 0.95], [0.85, 0.75]])
    between = np.array([[0.85, 0.95], [0.45, 0.35]])
    assert calibration_error(within) == pytest.approx(0.0)
    assert calibration_error(between) == pytest.approx(0.1)
    assert mean_error(within) == pytest.approx(0.1)


def cell(gain: float) -> dict[str, Any]:
    """22 images of one mask each; the layer is better than frozen SAM by `gain` on all of them."""
    frozen = {"val": [[[0.9, 0.6]]] * 6, "test": [[[0.9, 0.6]]] * 16}
    better = {part: [[[0.9, 0.6 + gain]]] * len(images) for part, images in frozen.items()}
    return {"frozen": frozen, "at": {"3": better}}


def test_floors_tell_how_often_a_layer_of_each_gain_is_kept() -> None:
    """Gains without scatter: every rule but `no floor` keeps exactly the layers that gain."""
    assert gains_of(cell(0.1), cell(0.1)["at"]["3"]) == pytest.approx([0.1] * 22)
    figures = floors([cell(0.1)], "phantom", lambda table: None)
    assert figures["loss_phantom_no_floor"] == pytest.approx(5)
    assert figures["loss_phantom_mean"] == 0
    assert figures["kept_-0.5_phantom_mean"] == 0
    assert figures["kept_+0.5_phantom_mean"] == 1


def test_with_scatter_a_test_keeps_fewer_bad_layers_than_the_mean_does() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(0, 0.06, 12)
    by_mean, by_test = (share_kept(gains, -0.01, RULES[name], rng) for name in ("mean", "t-test, level 0.1"))
    assert 0.2 < by_mean < 0.5
    assert by_test < by_mean / 2


def test_calibrations_are_fitted_to_validation_and_tried_on_test_masks() -> None:
    figures = calibrations([cell(0.1)], "phantom", lambda table: None)
    assert figures["ece_phantom_none"] == pytest.approx(0.2)
    assert figures["ece_phantom_shift"] == pytest.approx(0)
