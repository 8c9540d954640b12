"""The attack benchmark: its positive control finds members, and nothing else passes for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casam_bench.bench import Surroundings
from casam_bench.membership.audit_lines import Line
from casam_bench.membership.fit import losses_of
from casam_bench.membership.statistics import auc
from casam_bench.privacy import attack_canaries, attack_layers, attack_routers
from casam_bench.privacy.attack import check
from casam_bench.privacy.attack_layers import CONTROL, train
from casam_bench.privacy.attack_rows import Claim, Claims, Size, delta_of, verdict
from casam_bench.privacy.synthetic_site import image_of, images_of, sketch_backbone
from casam_core.errors import RunError
from casam_core.model.forms.affine import IdentityLayer
from tests.casam_bench.surroundings import surroundings

SMALL = Size(members=30, others=60, shadows=3, sites=3, small=12, router_shadows=3)


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return surroundings(tmp_path)


def test_an_over_trained_layer_gives_its_images_away_and_nobody_elses() -> None:
    backbone, known = sketch_backbone(1), images_of(0, 180)

    def losses(layer: object) -> np.ndarray:
        return losses_of(layer, known, range(180), backbone, lambda done, total: None)  # type: ignore[arg-type]

    frozen_N = losses(IdentityLayer(32))
    members, others = slice(0, 60), slice(60, 180)
    loss_N = losses(train(CONTROL, backbone, known[members], "target"))
    assert auc(-loss_N[members], -loss_N[others]) > 0.6
    assert auc((frozen_N - loss_N)[members], (frozen_N - loss_N)[others]) > 0.6
    # The same images under a layer that was trained on others.
    loss_N = losses(train(CONTROL, backbone, images_of(1, 60), "other"))
    assert 0.4 < auc(-loss_N[members], -loss_N[others]) < 0.6


def test_layers_and_routers_are_measured_row_by_row(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (attack_layers, attack_routers):
        monkeypatch.setattr(module, "EPSILONS", (1.0,))
        monkeypatch.setattr(module, "calibrate", lambda at, epsilon, delta: 4.0)
    monkeypatch.setattr(attack_layers, "PRIVATE", attack_layers.PRIVATE.model_copy(update={"steps": 3}))
    claims: Claims = []
    figures = attack_layers.measure(around, SMALL, claims)
    figures |= attack_routers.measure(around, SMALL, claims)
    assert figures["auc_layer_control_likelihood_ratio"] > 0.6
    assert 0.3 < figures["auc_layer_between_others_control"] < 0.7
    assert figures["loss_of_others_private_rounds_without_noise"] > 0
    assert figures["auc_gaussian_3_sites_of_12_open_read_out"] == 1.0
    assert figures["auc_public_frame_3_sites_of_12_open_score"] < 0.8
    assert not any(name.startswith("tpr_at_1pct_fpr") for name in figures)  # 1 % of 60 is no image
    assert {claim.row.split(",")[0] for claim in claims} == {
        "layer",
        "public_frame_3_sites_of_12",
        "gaussian_3_sites_of_12",
    }
    assert {claim.epsilon for claim in claims} == {1.0}
    check(figures, claims)


def test_the_benchmark_fails_without_its_control_and_on_a_refuted_epsilon() -> None:
    with pytest.raises(RunError, match=r"the positive control found nothing \(AUC 0.520\)"):
        check({"auc_layer_control_loss": 0.52, "auc_router_open_score": 1.0}, [])
    found = verdict(np.concatenate([np.ones(1000), np.zeros(2000)]), 1000, delta_of(1000))
    claim = Claim("layer, loss", 1.0, found)
    with pytest.raises(RunError, match=r"refutes an epsilon: layer, loss: 5\.\d\d or more, claimed 1"):
        check({"auc_layer_control_loss": 0.9}, [claim])
    check({"auc_layer_control_loss": 0.9}, [replace(claim, epsilon=8.0)])


def test_every_release_is_audited_and_a_broken_one_that_is_missed_is_an_error(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_canaries, "EPSILONS", (3.0,))
    size = replace(SMALL, members=100, canaries=1000, lone_canaries=200, broken=())
    figures = attack_canaries.measure(around, size)
    assert figures["audit_layer_25_steps_at_rate_0.2_3_canaries"] == 1000
    assert 0 < figures["audit_sum_behind_router_threshold_metrics_3_ratio"] < 1
    assert figures["audit_images_final_layer_only_3_guesses"] > 0
    sound = Line("sum", 3.0, 1e-4, 1.5, 1000, 100, 90)
    attack_canaries.check([sound], [replace(sound, at_least=3.5)])
    with pytest.raises(RunError, match=r"an audit refutes an epsilon: sum: 3.50 or more, claimed 3.00"):
        attack_canaries.check([replace(sound, at_least=3.5)], [])
    with pytest.raises(RunError, match=r"an audit does not find a broken mechanism: sum: 1.50 or more"):
        attack_canaries.check([], [sound])


def test_synthetic_images_are_the_same_every_time_and_have_an_object() -> None:
    for number in range(30):
        one, same = image_of(3, number), image_of(3, number)
        assert (one.seen_CHW == same.seen_CHW).all()
        assert (one.labels_HW == same.labels_HW).all()
        assert one.labels_HW.max() == 1
    assert not (image_of(3, 0).seen_CHW == image_of(4, 0).seen_CHW).any()
