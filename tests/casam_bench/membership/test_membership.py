"""Attacks and their figures: by hand, against another library, and where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from casam_bench.membership.fit import MEASURED, all_instances, fit_of, fits_of, losses_of, visible_images
from casam_bench.membership.inversion import read_out, resemblance
from casam_bench.membership.likelihood_ratio import offline, online, shadow_parts
from casam_bench.membership.statistics import (
    LEVELS,
    AttackFigures,
    attack_figures,
    auc,
    bound_at,
    epsilon_lower_bound,
    tpr_at,
)
from casam_core.config.named_parts import RouterSpec
from casam_core.model.examples import Example
from casam_core.model.training import decode_batch
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import single_images
from casam_core.routing.routers import GaussianSpec, VaeSpec, build_router
from casam_core.routing.routers.private_gaussian import describe_privately, public_statistics
from tests.banks import tiny_backbone


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def outcome(members: np.ndarray, others: np.ndarray, delta: float = 0.0) -> AttackFigures:
    return attack_figures(members, others, delta=delta, rng=np.random.default_rng(0))


# --- Figures -----------------------------------------------------------------------------------------


def test_auc_counts_pairs_and_ties_half() -> None:
    assert auc(values(3, 1), values(2, 0)) == 0.75
    assert auc(values(1, 1), values(1)) == 0.5
    assert auc(values(0), values(1, 2)) == 0.0


def test_the_true_positive_rate_is_read_off_above_the_allowed_false_positives() -> None:
    others = np.arange(1000.0)  # at 1 % ten of them (990 and up) may be taken for members
    assert tpr_at(values(989, 990, 2000), others, 0.01) == pytest.approx(2 / 3)
    assert tpr_at(values(949, 950), others, 0.05) == 0.5


def test_a_rate_with_fewer_than_ten_false_positives_is_not_measurable() -> None:
    assert tpr_at(values(5), np.arange(999.0), 0.01) is None
    assert tpr_at(values(5), np.arange(1000.0), 0.01) is not None
    found = outcome(np.arange(300.0), np.arange(150.0))
    assert [found.tpr[level] is None for level in LEVELS] == [True, True, True, False]
    assert all(bound is None for bound in found.bounds.values())  # only half of 150 measure
    assert (found.epsilon, found.ceiling) == (None, None)
    assert found.vacuous(0.1)


def test_clopper_and_pearson_by_hand() -> None:
    # All of n found: the lower end is 0.025^(1/n). None of m wrong: the upper end is 1 - 0.025^(1/m).
    by_hand = math.log((0.025 ** (1 / 100) - 1e-3) / (1 - 0.025 ** (1 / 1000)))
    assert epsilon_lower_bound(100, 100, 0, 1000, 1e-3) == pytest.approx(by_hand)


@pytest.mark.parametrize(("found", "wrong"), [(400, 20), (37, 10), (900, 300)])
def test_clopper_and_pearson_against_scipys_exact_intervals(found: int, wrong: int) -> None:
    low = binomtest(found, 1000).proportion_ci(0.95, method="exact").low
    high = binomtest(wrong, 2000).proportion_ci(0.95, method="exact").high
    expected = max(0.0, math.log((low - 1e-4) / high))
    assert epsilon_lower_bound(found, 1000, wrong, 2000, 1e-4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "wrong", "delta"), [(0, 10, 0.0), (10, 100, 0.0), (5, 0, 0.1), (50, 50, 0.0)]
)
def test_where_nothing_is_shown_the_bound_is_zero(found: int, wrong: int, delta: float) -> None:
    assert epsilon_lower_bound(found, 100, wrong, 100, delta) == 0


def test_the_threshold_is_named_by_images_that_it_is_not_measured_on() -> None:
    bound = bound_at(values(1, 2, 3, 4), np.zeros(200), np.full(200, 2.5), 0.05, 0.0)
    assert bound is not None
    assert (bound.tpr, bound.fpr) == (1.0, 1.0)  # above 0, which the others named


def test_bounds_stay_below_the_true_epsilon_and_are_no_empty_words() -> None:
    # The best attack on one Gaussian release: a member's shows sensitivity 1, everybody else's 0.
    delta, rng = 1e-3, np.random.default_rng(1)
    for noise, at_least in ((1.0, 1.5), (2.0, 0.6)):
        members, others = 1 / noise + rng.normal(size=20_000), rng.normal(size=20_000)
        found = outcome(members, others, delta)
        claimed = epsilon_of([Mechanism(noise)], delta)
        assert found.epsilon is not None
        assert at_least < found.epsilon <= claimed
        assert not found.vacuous(claimed)


def test_a_perfect_attack_on_few_images_cannot_contradict_a_large_epsilon() -> None:
    found = outcome(np.ones(500), np.zeros(500))
    assert found.auc == 1.0
    assert found.epsilon == found.ceiling
    assert found.ceiling == pytest.approx(math.log(0.025 ** (1 / 500) / (1 - 0.025 ** (1 / 250))))
    assert found.vacuous(8.0)
    assert not found.vacuous(3.0)


def test_guessing_is_told_from_finding() -> None:
    rng = np.random.default_rng(2)
    assert outcome(rng.normal(size=200), rng.normal(size=200)).p_value > 0.05
    assert outcome(rng.normal(size=200) + 1, rng.normal(size=200)).p_value < 1e-6


@pytest.mark.parametrize(
    ("members", "others", "fault"),
    [
        (values(), values(1), "scores of members, found none"),
        (values(1), values(), "scores of non-members, found none"),
        (values(1, math.nan), values(1), "1 scores of members are not numbers"),
    ],
)
def test_scores_that_say_nothing_are_refused(members: np.ndarray, others: np.ndarray, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        outcome(members, others)


# --- Likelihood ratios -------------------------------------------------------------------------------


def test_every_image_is_inside_of_as_many_shadows() -> None:
    inside_MN = shadow_parts(10, 2, 6, np.random.default_rng(0))
    assert inside_MN.sum(0).tolist() == [3] * 10
    assert inside_MN.sum(1).tolist() == [5] * 6
    assert (inside_MN[0] ^ inside_MN[1]).all()


@pytest.mark.parametrize(("parts", "shadows"), [(2, 3), (2, 0), (1, 2)])
def test_shadows_that_do_not_cover_the_images_are_refused(parts: int, shadows: int) -> None:
    with pytest.raises(ValueError, match="expected shadows in multiples"):
        shadow_parts(10, parts, shadows, np.random.default_rng(0))


def test_likelihood_ratios_by_hand() -> None:
    inside_MN = np.array([[True, False], [True, False], [False, True], [False, True]])
    fit_MN = np.array([[5.0, 1], [7, 3], [0, 8], [2, 10]])
    # Out: image 0 (0, 2), image 1 (1, 3): means 1 and 2. In: 6 and 9. All four as wide.
    fit_N = values(6, 2)
    assert offline(fit_N, fit_MN, inside_MN) == pytest.approx([5 / math.sqrt(2), 0])
    assert online(fit_N, fit_MN, inside_MN) == pytest.approx([25 / 4, -49 / 4])


def test_an_image_without_a_shadow_to_compare_with_is_refused() -> None:
    inside_MN = np.array([[True, False], [True, True]])
    with pytest.raises(ValueError, match="1 images have no shadow model"):
        offline(values(0, 0), np.zeros((2, 2)), inside_MN)


def test_likelihood_ratios_see_through_hard_and_easy_images() -> None:
    rng = np.random.default_rng(3)
    hard_N = rng.normal(size=400) * 3
    inside_MN = np.vstack([np.arange(400) < 200, shadow_parts(400, 2, 8, rng)])
    fit_MN = hard_N + inside_MN + 0.3 * rng.normal(size=inside_MN.shape)

    def found(score_N: np.ndarray) -> float:
        return auc(score_N[:200], score_N[200:])

    assert found(fit_MN[0]) < 0.65
    assert found(online(fit_MN[0], fit_MN[1:], inside_MN[1:])) > 0.95
    assert found(offline(fit_MN[0], fit_MN[1:], inside_MN[1:])) > 0.95


# --- What a layer makes of an image ------------------------------------------------------------------


def test_a_loss_is_that_of_the_image_alone_and_always_the_same() -> None:
    tiny, labels = tiny_backbone(), np.zeros((64, 64), np.int32)
    labels[10:40, 10:40], labels[45:60, 45:60] = 1, 2
    known = [
        Example(torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(i)), labels) for i in range(3)
    ]
    known.append(Example(known[0].seen_CHW, np.zeros_like(labels)))
    from casam_core.config.named_parts import AlignmentSpec
    from casam_core.model.forms import build_layer

    layer = build_layer(AlignmentSpec(form="casam"), 32, 0).eval()
    assert visible_images(known, range(4), tiny) == [0, 1, 2]
    losses_N = losses_of(layer, known, [0, 1, 2], tiny, lambda done, total: None)
    for i in range(3):
        drawn = all_instances(known[i], tiny)
        assert drawn is not None
        assert len(drawn.target_Nhw) == 2
        with torch.no_grad():
            assert losses_N[i] == float(decode_batch(layer, tiny, [drawn]).loss(MEASURED))
    assert fit_of(values(1, math.e)) == pytest.approx([0, -1])


# --- What a router state makes of an image -------------------------------------------------------------


def features(seed: int, count: int, width: int = 64) -> torch.Tensor:
    """Images of one kind: they share a centre and three directions."""
    shared = torch.Generator().manual_seed(99)
    centre, directions = torch.randn(width, generator=shared), torch.randn(3, width, generator=shared)
    own = torch.Generator().manual_seed(seed)
    return (
        centre + torch.randn(count, 3, generator=own) @ directions + torch.randn(count, width, generator=own)
    )


@pytest.mark.parametrize(("images", "spanned"), [(20, True), (33, True), (60, False)])
def test_an_open_gaussian_router_of_few_images_holds_every_one_of_them(images: int, spanned: bool) -> None:
    router = build_router(GaussianSpec())
    members, others = features(1, images), features(2, 100)
    state = router.fit(router.sufficient_statistics(members, 0))
    inside, outside = (
        read_out("gaussian", router, members, state),
        read_out("gaussian", router, others, state),
    )
    assert (inside.min() > 0.9999) == spanned
    assert outside.max() < 0.99
    assert auc(inside, outside) > (0.9999 if spanned else 0.9)
    assert auc(fits_of(router, members, state), fits_of(router, others, state)) > 0.9


def test_with_noise_the_router_tells_members_from_nobody() -> None:
    frame = public_statistics([features(seed, 16).double().numpy() + seed for seed in (11, 12, 13)])
    router, members, others = build_router(GaussianSpec()), features(1, 200), features(2, 200)
    noise = NoiseSource.seeded(0, "test")
    state = router.fit(describe_privately(members.double().numpy(), single_images(200), frame, 5.0, noise))
    for inside, outside in (
        (read_out("gaussian", router, members, state), read_out("gaussian", router, others, state)),
        (fits_of(router, members, state), fits_of(router, others, state)),
    ):
        assert 0.4 < auc(inside, outside) < 0.6


def test_a_mean_has_no_directions_to_read_from() -> None:
    router, f_NF = build_router(RouterSpec(kind="nearest_mean")), features(1, 10)
    assert (
        np.abs(
            read_out("nearest_mean", router, f_NF, router.fit(router.sufficient_statistics(f_NF, 0)))
        ).max()
        < 1e-6
    )


def test_an_autoencoder_reads_out_what_it_has_learned() -> None:
    spec = VaeSpec(beta=0.0, epochs=200, learning_rate=5e-3)
    router, members = build_router(spec), features(1, 12)
    state = router.fit(router.sufficient_statistics(members, 0))
    assert (
        read_out("vae", router, members, state).mean()
        > read_out("vae", router, features(2, 50), state).mean()
    )


def test_a_router_of_one_image_is_that_image_and_one_of_many_is_nobody() -> None:
    router, others = build_router(RouterSpec(kind="nearest_mean")), features(2, 50)
    for images, least, most in ((1, 0.9999, 1.0), (200, -0.2, 0.4)):
        members = features(1, images)
        state = router.fit(router.sufficient_statistics(members, 0))
        found = resemblance("nearest_mean", router, members, others, state)
        assert least <= found.mean() <= most + 1e-9
    assert abs(resemblance("nearest_mean", router, others, others, state).mean()) < 0.4
