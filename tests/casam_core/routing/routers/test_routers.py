"""Routers: the paper's VAE and the Gaussian, against dense formulas in numpy float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.named_parts import RouterSpec
from casam_core.errors import ScenarioError
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import ROUTERS, Arrays, GaussianSpec, VaeSpec, build_router, router_spec
from casam_core.routing.routers.gaussian import RELATIVE_FLOOR, GaussianRouter
from casam_core.routing.routers.vae import HIDDEN, LATENT, TaskVae, VaeRouter
from tests.banks import random_frame

Floats = NDArray[np.float64]
DIRECTIONS = GaussianSpec().directions


def features(count: int, width: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated features with unequal variances."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) / width**0.5 + np.diag(rng.uniform(0.5, 2, width))
    return torch.from_numpy((rng.normal(size=(count, width)) @ mixing + shift).astype(np.float32))


def gaussian(shrinkage: float = 0.3) -> GaussianRouter:
    return GaussianRouter(GaussianSpec(shrinkage=shrinkage))


def stored_sigma(state: Arrays) -> Floats:
    directions = np.asarray(state["directions_KF"], np.float64)
    return np.diag(np.asarray(state["diagonal_F"], np.float64)) + directions.T @ directions


def dense_score(f: Floats, mean: Floats, sigma: Floats) -> float:
    sign, log_determinant = np.linalg.slogdet(sigma)
    assert sign == 1
    d = f - mean
    return float((d @ np.linalg.inv(sigma) @ d + log_determinant) / len(f))


def states_agree(one: Arrays, other: Arrays, rtol: float = 1e-4) -> None:
    """Directions may differ in sign, so the covariances are compared."""
    np.testing.assert_allclose(one["mean_F"], other["mean_F"], rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(stored_sigma(one), stored_sigma(other), rtol=rtol, atol=1e-5)


# --- Gaussian --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(5, 12), (33, 40), (200, 12), (24, 96), (60, 50)])
def test_the_gaussian_score_is_the_dense_formula_of_what_is_stored(count: int, width: int) -> None:
    f = features(count, width)
    state = gaussian().fit(gaussian().sufficient_statistics(f, seed=0))
    sigma, mean = stored_sigma(state), np.asarray(state["mean_F"], np.float64)
    for probe in features(5, width, seed=1, shift=2.0):
        want = dense_score(probe.double().numpy(), mean, sigma)
        assert gaussian().score(probe, state) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("shrinkage", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("count", "width"), [(2, 6), (12, 6), (24, 64), (DIRECTIONS + 1, 40)])
def test_with_few_samples_the_covariance_is_the_sample_covariance_pulled_to_its_diagonal(
    count: int, width: int, shrinkage: float
) -> None:
    f = features(count, width)
    state = gaussian(shrinkage).fit(gaussian(shrinkage).sufficient_statistics(f, seed=0))
    sample = np.cov(f.double().numpy().T, bias=True)
    want = (1 - shrinkage) * sample + shrinkage * np.diag(np.diag(sample))
    tolerance = RELATIVE_FLOOR * np.trace(sample)
    np.testing.assert_allclose(stored_sigma(state), want, atol=tolerance)


def test_with_many_samples_every_feature_keeps_its_variance_and_the_leading_directions_stay() -> None:
    f = features(300, 50)
    state = gaussian().fit(gaussian().sufficient_statistics(f, seed=0))
    sample = np.cov(f.double().numpy().T, bias=True)
    assert state["directions_KF"].shape == (DIRECTIONS, 50)
    np.testing.assert_allclose(np.diag(stored_sigma(state)), np.diag(sample), rtol=1e-4)
    values, vectors = np.linalg.eigh(0.7 * sample)
    leading = (vectors[:, -DIRECTIONS:] * values[-DIRECTIONS:]) @ vectors[:, -DIRECTIONS:].T
    directions = np.asarray(state["directions_KF"], np.float64)
    np.testing.assert_allclose(directions.T @ directions, leading, atol=1e-4)


def test_a_one_dimensional_gaussian_by_hand() -> None:
    # 1 and 5: mean 3, variance 4. At f = 7 the distance is 16 / 4, and log det is ln 4.
    state = gaussian().fit(gaussian().sufficient_statistics(torch.tensor([[1.0], [5.0]]), seed=0))
    assert gaussian().score(torch.tensor([7.0]), state) == pytest.approx(4 + math.log(4), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    width=st.sampled_from([1, 3, 20]),
)
def test_merged_summaries_are_the_summary_of_all_features_in_any_order(
    seed: int, sizes: list[int], width: int
) -> None:
    everything = features(sum(sizes), width, seed=seed, shift=1.0)
    parts = torch.split(everything, sizes)
    router = gaussian()
    summaries = [router.sufficient_statistics(part, seed=0) for part in parts]
    union = router.sufficient_statistics(everything, seed=0)
    for merged in (router.merge(summaries), router.merge(summaries[::-1])):
        assert merged.keys() == union.keys()
        for key in union:
            np.testing.assert_allclose(merged[key], union[key], rtol=1e-12, atol=1e-9)
        states_agree(router.fit(merged), router.fit(union))


def test_one_holder_merged_alone_is_itself() -> None:
    summary = gaussian().sufficient_statistics(features(6, 4), seed=0)
    merged = gaussian().merge([summary])
    assert all(np.array_equal(merged[key], summary[key]) for key in summary)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("width", [1, 6, 64])
def test_one_or_two_images_give_a_finite_score_lowest_at_their_mean(count: int, width: int) -> None:
    f = features(count, width, shift=3.0)
    state = gaussian().fit(gaussian().sufficient_statistics(f, seed=0))
    assert state["directions_KF"].shape == (min(count - 1, width), width)
    at_mean, beside = gaussian().score(f.mean(0), state), gaussian().score(f.mean(0) + 1, state)
    assert math.isfinite(at_mean)
    assert math.isfinite(beside)
    assert at_mean < beside


def test_constant_features_score_finitely_and_do_not_decide_alone() -> None:
    f = features(20, 8)
    f[:, 3] = 5.0
    state = gaussian().fit(gaussian().sufficient_statistics(f, seed=0))
    floor = RELATIVE_FLOOR * np.var(f.double().numpy(), axis=0).mean()
    assert stored_sigma(state)[3, 3] == pytest.approx(floor, rel=1e-3)
    probe = f[0].clone()
    known = gaussian().score(probe, state)
    probe[3] += 1e-3  # far below the other features' spread
    assert gaussian().score(probe, state) == pytest.approx(known, abs=0.05)
    all_constant = gaussian().fit(gaussian().sufficient_statistics(torch.ones(5, 8), seed=0))
    assert math.isfinite(gaussian().score(torch.ones(8), all_constant))
    assert math.isfinite(gaussian().score(torch.zeros(8), all_constant))


def test_the_gaussian_recognises_its_own_task() -> None:
    router = gaussian()
    states = [
        router.fit(router.sufficient_statistics(features(24, 16, seed=s, shift=s), seed=0)) for s in range(3)
    ]
    for own in range(3):
        for probe in features(8, 16, seed=own, shift=own):
            scores = [router.score(probe, state) for state in states]
            assert int(np.argmin(scores)) == own


def test_a_state_is_float32_and_small() -> None:
    state = gaussian().fit(gaussian().sufficient_statistics(features(100, 512), seed=0))
    assert all(value.dtype == np.float32 for value in state.values())
    assert sum(value.nbytes for value in state.values()) == (DIRECTIONS + 2) * 512 * 4


# --- VAE -------------------------------------------------------------------------------------------


def gelu(x: Floats) -> Floats:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def vae_score(f: Floats, state: Arrays, beta: float) -> float:
    """The paper's score in numpy, with the latent's mean."""
    w = {name: np.asarray(value, np.float64) for name, value in state.items()}

    def linear(name: str, x: Floats) -> Floats:
        return np.asarray(w[f"{name}.weight"] @ x + w[f"{name}.bias"])

    hidden = gelu(linear("enc_fc1", f))
    mu, logvar = linear("enc_fc2_mu", hidden), linear("enc_fc2_logvar", hidden)
    reconstruction = linear("dec_fc2", gelu(linear("dec_fc1", mu)))
    divergence = 0.5 * np.sum(mu**2 + np.exp(logvar) - logvar - 1)
    return float(np.mean((reconstruction - f) ** 2) + beta * divergence)


def vae(**changes: Any) -> VaeRouter:
    return VaeRouter(VaeSpec(**{"epochs": 2, **changes}))


def random_state(width: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.2, tuple(value.shape)).astype(np.float32)
        for name, value in TaskVae(width).state_dict().items()
    }


def test_the_vae_has_the_papers_size_and_names() -> None:
    model = TaskVae(256)
    assert sum(p.numel() for p in model.parameters()) == 90_752
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "enc_fc1",
        "enc_fc2_mu",
        "enc_fc2_logvar",
        "dec_fc1",
        "dec_fc2",
    }


def test_the_vae_starts_with_xavier_weights_and_zero_biases() -> None:
    model = TaskVae(256)
    bound = math.sqrt(6 / (256 + HIDDEN))
    assert not any(value.any() for name, value in model.state_dict().items() if name.endswith("bias"))
    assert 0.95 * bound < float(model.enc_fc1.weight.detach().abs().max()) <= bound
    assert model.dec_fc1.in_features == LATENT


@pytest.mark.parametrize("beta", [0.0, 1.0, 16.5])
def test_the_vae_score_is_mean_squared_error_plus_beta_times_summed_divergence(beta: float) -> None:
    state = random_state(20)
    for f in features(4, 20, seed=3):
        want = vae_score(f.double().numpy(), state, beta)
        assert vae(beta=beta).score(f, state) == pytest.approx(want, rel=1e-4)


def test_the_vae_scores_with_the_latents_mean_unless_told_to_sample() -> None:
    f, state = features(1, 20)[0], random_state(20)
    exact, sampled = vae().score(f, state), vae(sampled=True).score(f, state)
    assert vae().score(f, state) == exact
    assert sampled != exact
    assert vae(sampled=True).score(f, state) == sampled


def test_training_a_vae_lowers_its_score_of_its_own_features() -> None:
    f = features(24, 16, shift=1.0)
    means = []
    for router in (vae(epochs=1), vae(epochs=60)):
        state = router.fit(router.sufficient_statistics(f, seed=0))
        means.append(np.mean([router.score(x, state) for x in f]))
    assert means[1] < means[0]


def test_equal_seeds_train_equal_vaes_whatever_the_global_generator() -> None:
    f = features(9, 8)
    torch.manual_seed(1)
    first = vae().sufficient_statistics(f, seed=4)
    torch.manual_seed(2)
    second = vae().sufficient_statistics(f, seed=4)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = vae().sufficient_statistics(f, seed=5)
    assert not np.array_equal(first["enc_fc1.weight"], other["enc_fc1.weight"])


def test_training_a_vae_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    vae().sufficient_statistics(features(5, 8), seed=0)
    assert torch.equal(torch.rand(4), want)


def test_holders_vaes_are_averaged_by_their_image_counts() -> None:
    one = {"count": np.array([1.0]), "weight": np.array([0.0, 4.0], np.float32)}
    three = {"count": np.array([3.0]), "weight": np.array([8.0, 0.0], np.float32)}
    for summaries in ([one, three], [three, one]):
        merged = vae().merge(summaries)
        assert merged["count"].tolist() == [4.0]
        assert merged["weight"].tolist() == [6.0, 1.0]


def test_a_finished_vae_is_its_weights_in_float32_without_the_count() -> None:
    router = vae()
    summary = router.sufficient_statistics(features(4, 8), seed=0)
    state = router.fit(router.merge([summary, summary]))
    assert "count" not in state
    assert all(value.dtype == np.float32 for value in state.values())
    np.testing.assert_allclose(state["dec_fc2.weight"], summary["dec_fc2.weight"], rtol=1e-6)


# --- Both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ROUTERS))
@pytest.mark.parametrize("sizes", [[7], [1], [4, 3]])
def test_every_router_counts_its_images_and_scores_deterministically(kind: str, sizes: Sequence[int]) -> None:
    router = build_router(router_spec(kind, {"epochs": 1, "frame": random_frame(10)}), FRAMES.here)
    summaries = [router.sufficient_statistics(features(n, 10, seed=n), seed=n) for n in sizes]
    merged = router.merge(summaries)
    assert merged["count"].tolist() == [sum(sizes)]
    state = router.fit(merged)
    probe = features(1, 10, seed=9)[0]
    assert router.score(probe, state) == router.score(probe, state)
    assert isinstance(router.score(probe, state), float)


# --- nearest mean -----------------------------------------------------------------------------------


def test_the_nearest_mean_by_hand() -> None:
    # (1, 0) and (3, 4): mean (2, 2). At (5, 6) the squared distances are 9 and 16, their mean 12.5.
    router = build_router(RouterSpec(kind="nearest_mean"))
    state = router.fit(router.sufficient_statistics(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), seed=0))
    np.testing.assert_array_equal(state["mean_F"], [2.0, 2.0])
    assert router.score(torch.tensor([5.0, 6.0]), state) == 12.5


def test_merged_sums_are_the_mean_of_all_holders_images() -> None:
    router = build_router(RouterSpec(kind="nearest_mean"))
    parts = [features(3, 5), features(8, 5, seed=1)]
    merged = router.fit(router.merge([router.sufficient_statistics(part, seed=0) for part in parts]))
    np.testing.assert_allclose(merged["mean_F"], torch.cat(parts).mean(0).numpy(), rtol=1e-5)


def test_an_unknown_router_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ScenarioError, match=r"router\.kind.*gaussian, nearest_mean, public_frame, vae.*'knn'"
    ):
        build_router(RouterSpec(kind="knn"))
