"""Worst-case canaries: they prove much of an epsilon, never more, and find mechanisms that are broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from casam_bench.membership import canaries
from casam_bench.membership.audit_claims import Claimed, audit_claims, claims_of_policy, refuted
from casam_bench.membership.audit_lines import Line, read_audits, write_audits
from casam_bench.membership.canaries import (
    Broken,
    Release,
    audit_release,
    flipped,
    layer_release,
    rehearsed,
    router_release,
    scores_release,
    sum_release,
    together,
)
from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.errors import RunError
from casam_core.privacy.accounting import Mechanism, calibrate, round_mechanism
from casam_core.privacy.noise import NoiseSource
from tests.conftest import phantom

NOISE, CLIP = Broken(noise=0.5), Broken(clip=2.0)
SAMPLED = PrivacySpec(steps=25, sampling_rate=0.2)


def once(noise_multiplier: float) -> Mechanism:
    return Mechanism(noise_multiplier)


def sampled_round(noise_multiplier: float) -> Mechanism:
    return round_mechanism(SAMPLED, noise_multiplier, units=1)


def audited(
    make: Callable[[str, Mechanism, Broken | None], Release],
    cost: Callable[[float], Mechanism],
    epsilon: float,
    many: int,
    seed: int = 0,
    broken: Broken | None = None,
) -> Line:
    """A release whose noise is the smallest for this epsilon."""
    delta = 0.5 / many
    noise = calibrate(lambda scale: [cost(scale)], epsilon, delta)
    return audit_release(make("release", cost(noise), broken), many, delta, seed)


# --- Sound mechanisms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [8.0, 3.0, 1.0])
def test_canaries_prove_a_part_of_a_sums_epsilon_and_never_more(epsilon: float) -> None:
    line = audited(sum_release, once, epsilon, 20_000)
    assert 0.35 < line.ratio < 1


def test_canaries_prove_a_part_of_a_layers_epsilon() -> None:
    line = audited(layer_release, sampled_round, 3.0, 2000)
    assert 0.2 < line.ratio < 1
    assert line.claim == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize("make", [router_release, scores_release])
def test_one_canary_a_site_proves_a_part_of_an_epsilon(
    make: Callable[[str, Mechanism, Broken | None], Release],
) -> None:
    line = audited(make, once, 3.0, 600)
    assert 0.1 < line.ratio < 1


def test_several_releases_about_the_same_images_are_one_claim() -> None:
    mechanism = Mechanism(2.0)
    parts = [sum_release(name, mechanism) for name in ("router", "threshold")]
    line = audit_release(together("both", parts), 5000, 1e-4, 0)
    alone = audit_release(parts[0], 5000, 1e-4, 0)
    assert alone.claim < line.claim < 2 * alone.claim
    assert alone.at_least < line.at_least < line.claim


def test_the_same_seed_gives_the_same_line_and_another_seed_another() -> None:
    lines = [audited(sum_release, once, 1.0, 2000, seed) for seed in (0, 0, 1)]
    assert lines[0] == lines[1] != lines[2]


def test_a_canary_that_is_out_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "TOGETHER", 50)
    release = sum_release("sum", Mechanism(0.05))  # so little noise that every coin can be read
    coins = flipped(120, 3)
    scores = release.scores(coins, NoiseSource.seeded(0, "test"))
    assert ((scores > 0) == coins).all()


def test_the_plan_does_not_depend_on_the_audited_coins() -> None:
    mechanism = (Mechanism(1.5),)
    plans = {rehearsed(mechanism, 2000, seed).guesses for seed in range(3)}
    assert max(plans) <= 1000
    assert rehearsed(mechanism, 2000, 0) == rehearsed(mechanism, 2000, 0)


# --- Broken mechanisms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [NOISE, CLIP], ids=["noise x 0.5", "clip x 2"])
def test_a_broken_sum_is_caught(broken: Broken) -> None:
    assert audited(sum_release, once, 2.0, 20_000, 0, broken).refuted
    assert not audited(sum_release, once, 2.0, 20_000, 0).refuted


@pytest.mark.parametrize("broken", [NOISE, CLIP], ids=["noise x 0.5", "clip x 2"])
def test_a_broken_layer_is_caught(broken: Broken) -> None:
    def one_step(noise_multiplier: float) -> Mechanism:
        return Mechanism(noise_multiplier, sample_rate=1.0)

    assert audited(layer_release, one_step, 2.0, 20_000, 0, broken).refuted
    assert not audited(layer_release, one_step, 2.0, 20_000, 0).refuted


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [3.0, 1.0])
@pytest.mark.parametrize("broken", [NOISE, CLIP], ids=["noise x 0.5", "clip x 2"])
def test_a_broken_layer_of_sampled_steps_is_caught(epsilon: float, broken: Broken) -> None:
    assert audited(layer_release, sampled_round, epsilon, 60_000, 0, broken).refuted


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [8.0, 3.0, 1.0])
def test_half_of_a_sums_epsilon_is_proved_and_never_more_than_it(epsilon: float) -> None:
    lines = [audited(sum_release, once, epsilon, 100_000, seed) for seed in range(10)]
    assert not any(line.refuted for line in lines)
    assert np.mean([line.ratio for line in lines]) > 0.55


# --- Claims of institutions ----------------------------------------------------------------------------


def scenario() -> Scenario:
    """One institution with noise on everything, and one without."""
    noisy = {
        "adapter": {"noise": "dp"},
        "router": {"noise": "dp"},
        "metrics": "noisy",
        "budget": {"epsilon": 6.0, "epsilon_metrics": 3.0, "delta": 0.001},
    }
    return Scenario.model_validate(
        {
            "name": "claims",
            "stream": ["polyp", "dental_xray"],
            "backbone": {"name": "tiny"},
            "router": {"kind": "gaussian"},  # its threshold is a release of its own
            "institutions": [
                {"name": "noisy", "data": {"polyp": phantom("polyp")}, "policy": noisy},
                {"name": "open", "data": {"dental_xray": phantom("dental_xray")}},
            ],
        }
    )


def test_the_plan_of_a_policy_is_audited_release_by_release_and_as_a_whole() -> None:
    planned = scenario()
    claims = {site.name: list(claims_of_policy(planned, site.policy)) for site in planned.institutions}
    assert claims["open"] == []
    audits = audit_claims(claims, 1000, 0)
    assert list(audits) == ["noisy"]
    assert [line.release for line in audits["noisy"]] == [
        "layer",
        "router",
        "threshold",
        "all of training images",
        "metrics",
    ]
    parts, whole = audits["noisy"][:3], audits["noisy"][3]
    assert max(line.claim for line in parts) < whole.claim
    assert refuted(audits) == []


def test_a_refuted_claim_is_named() -> None:
    line = Line("layer", 3.0, 1e-4, 3.5, 5000, 100, 99)
    assert refuted({"north": [line]}) == ["north, layer: epsilon is 3.50 or more (95 %), the claim is 3.00"]


def test_equal_mechanisms_of_one_kind_are_one_release() -> None:
    rounds = [Claimed("train", "align", Mechanism(20.0, 0.5, 2))] * 3
    (line,) = audit_claims({"north": rounds}, 1000, 0)["north"]
    assert line.release == "layer"
    assert line.claim == pytest.approx(
        audit_release(layer_release("layer", Mechanism(20.0, 0.5, 6)), 1000, 5e-4, 0).claim
    )


def test_lines_are_stored_whole_and_another_content_is_refused(tmp_path: Path) -> None:
    audits = {"north": [Line("layer", 3.0, 1e-4, 1.5, 5000, 100, 90)]}
    write_audits(tmp_path / "audit.json", audits)
    assert read_audits(tmp_path / "audit.json") == audits
    for content in ("[]", "{", '{"north": [{"release": "layer"}]}', '{"north": 3}'):
        (tmp_path / "audit.json").write_text(content)
        with pytest.raises(RunError, match="expected the lines of a privacy audit"):
            read_audits(tmp_path / "audit.json")
