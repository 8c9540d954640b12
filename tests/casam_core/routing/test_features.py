"""Pooled features: worked out by hand, and a plain second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casam_core.errors import ScenarioError
from casam_core.routing.features import FEATURES, attention_pool, moments_pool, pool


def test_attention_pooling_by_hand() -> None:
    # Two channels, two cells: (3, 4) with norm 5 and (0, 0) with norm 0; divided by C = 2: 2.5 and 0.
    z = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).reshape(1, 2, 1, 2)
    weight = math.exp(2.5) / (math.exp(2.5) + 1)
    assert attention_pool(z)[0].tolist() == pytest.approx([3 * weight, 4 * weight])


def test_moments_pooling_by_hand() -> None:
    # Channel 0 is 1, 2, 3, 4: mean 2.5, population variance 1.25. Channel 1 is constant.
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0], [7.0, 7.0, 7.0, 7.0]]).reshape(1, 2, 2, 2)
    assert moments_pool(z)[0].tolist() == pytest.approx([2.5, 7.0, math.sqrt(1.25), 0.0])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), channels=st.integers(1, 8), height=st.integers(1, 5), width=st.integers(1, 5)
)
def test_attention_pooling_is_a_softmax_of_norms_over_cells(
    seed: int, channels: int, height: int, width: int
) -> None:
    z = np.random.default_rng(seed).normal(0, 5, (channels, height, width))
    strengths = [np.linalg.norm(z[:, y, x]) / channels for y in range(height) for x in range(width)]
    weights = np.exp(strengths) / np.exp(strengths).sum()
    want = sum(w * z[:, i // width, i % width] for i, w in enumerate(weights))
    np.testing.assert_allclose(pool(torch.from_numpy(z), "attention").numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(FEATURES))
def test_the_feature_does_not_depend_on_where_the_cells_lie(kind: str) -> None:
    z = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    turned = z.flip(1).transpose(1, 2)
    torch.testing.assert_close(pool(turned, kind), pool(z, kind))


@pytest.mark.parametrize(("kind", "length"), [("attention", 6), ("moments", 12)])
def test_a_feature_is_one_float32_vector_per_image_even_from_half_precision(kind: str, length: int) -> None:
    feature = pool(torch.ones(6, 3, 3, dtype=torch.float16), kind)
    assert feature.shape == (length,)
    assert feature.dtype == torch.float32


def test_strong_cells_do_not_overflow_the_softmax() -> None:
    assert torch.isfinite(pool(torch.full((4, 2, 2), 1e6), "attention")).all()


def test_an_unknown_feature_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"router\.features.*attention, moments.*'gap'"):
        pool(torch.zeros(1, 1, 1), "gap")
