"""Alignment Layers: sizes, the identity at step 0, and the paper's forward written out a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.config.named_parts import AlignmentSpec
from casam_core.errors import BankError, ScenarioError
from casam_core.model.forms import (
    FORMS,
    LowRankSpec,
    build_layer,
    form_entry,
    form_spec,
    learning_rate_of,
    set_weights,
    weights_of,
)
from casam_core.model.forms.casam import attention_kernel

SAM_FORMS = {"decoder", "lora"}  # they change SAM itself: tests/casam_core/model/forms/test_sam_forms.py
FORM_NAMES = sorted(FORMS.keys() - SAM_FORMS - {"identity"})
IDENTITY_FORMS = ["low_rank", "low_rank_decoder", "residual", "scale_shift"]


def layer_of(form: str, channels: int = 16, seed: int = 0, rank: int = 8) -> nn.Module:
    return build_layer(form_spec(form, {"rank": rank}), channels, seed)


def embedding(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Second implementation of the paper form, from its formulas -------------------------------------


def channel_norm(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    mean = x_BCHW.mean(1, keepdim=True)
    variance = ((x_BCHW - mean) ** 2).mean(1, keepdim=True)
    return (x_BCHW - mean) / torch.sqrt(variance + 1e-6) * weight_C[:, None, None] + bias_C[:, None, None]


def sliding_attention(x_BCHW: Tensor, kernel: Tensor) -> Tensor:
    """sigmoid of the kernel slid along the channel means, zeros beyond the ends; one channel at a time."""
    means_BC = x_BCHW.mean((2, 3))
    half = len(kernel) // 2
    weights = torch.zeros_like(means_BC)
    for c in range(means_BC.shape[1]):
        for k, factor in enumerate(kernel):
            if 0 <= c + k - half < means_BC.shape[1]:
                weights[:, c] += factor * means_BC[:, c + k - half]
    return torch.sigmoid(weights)[:, :, None, None]


def paper_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    for i in range(3):
        r = x
        x = F.conv2d(
            x.relu(), weights[f"layers.{i}.conv1.weight"], weights[f"layers.{i}.conv1.bias"], padding=1
        )
        x = F.conv2d(
            x.relu(), weights[f"layers.{i}.conv2.weight"], weights[f"layers.{i}.conv2.bias"], padding=1
        )
        x = x * sliding_attention(x, weights[f"layers.{i}.attention.conv.weight"].flatten()) + r
        x = channel_norm(x, weights["norm.weight"], weights["norm.bias"])
    return x


@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 32])
def test_the_paper_form_computes_the_papers_formula(channels: int) -> None:
    layer = layer_of("casam", channels)
    for parameter in layer.parameters():  # the norm starts at 1 and 0, which would hide it
        parameter.add_(0.1 * embedding(*parameter.shape, seed=parameter.numel()))
    x = embedding(2, channels, 5, 7)
    torch.testing.assert_close(layer(x), paper_forward(x, layer.state_dict()), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_residual_form_adds_attended_convolutions_of_the_normed_input() -> None:
    layer = layer_of("residual")
    for parameter in layer.parameters():
        parameter.add_(0.1 * embedding(*parameter.shape, seed=parameter.numel()))
    z = embedding(2, 16, 4, 6)
    want, weights = z, layer.state_dict()
    for i in range(3):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in weights.items()}
        y = channel_norm(want, w["norm.weight"], w["norm.bias"]).relu()
        y = F.conv2d(y, w["conv1.weight"], w["conv1.bias"], padding=1).relu()
        y = F.conv2d(y, w["conv2.weight"], w["conv2.bias"], padding=1)
        want = want + y * sliding_attention(y, w["attention.conv.weight"].flatten())
    torch.testing.assert_close(layer(z), want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_low_rank_form_is_one_matrix_and_a_shift_in_every_cell() -> None:
    layer = layer_of("low_rank", 16, rank=3)
    layer.up_CR.copy_(embedding(16, 3))
    layer.shift_C.copy_(embedding(16))
    z = embedding(2, 16, 4, 5)
    matrix = torch.eye(16) + layer.up_CR @ layer.down_RC
    for b, y, x in [(0, 0, 0), (1, 3, 4), (0, 2, 1)]:
        torch.testing.assert_close(layer(z)[b, :, y, x], matrix @ z[b, :, y, x] + layer.shift_C)


# --- Sizes -----------------------------------------------------------------------------------------


def test_the_scale_shift_form_by_hand() -> None:
    layer = layer_of("scale_shift", 2)
    set_weights(layer, {"scale_C": np.array([0.5, -1], np.float32), "shift_C": np.array([1, 2], np.float32)})
    # channel 0: 4 * 1.5 + 1 = 7; channel 1: 4 * 0 + 2 = 2
    assert layer(torch.full((1, 2, 1, 1), 4.0)).flatten().tolist() == [7, 2]


@pytest.mark.parametrize(
    ("form", "count"),
    [("casam", 3_541_007), ("low_rank", 4_352), ("low_rank_decoder", 16_128), ("scale_shift", 512)],
)
def test_the_number_of_parameters_at_256_channels_is_the_published_one(form: str, count: int) -> None:
    assert sum(p.numel() for p in layer_of(form, 256).parameters()) == count


def test_the_residual_form_has_the_papers_weights_and_a_norm_per_block() -> None:
    paper = sum(p.numel() for p in layer_of("casam", 32).parameters())
    residual = sum(p.numel() for p in layer_of("residual", 32).parameters())
    assert residual == paper + 2 * (2 * 32)  # three norms of a weight and a bias instead of one


@pytest.mark.parametrize(("channels", "kernel"), [(256, 5), (512, 5), (32, 3), (64, 3), (16, 3), (2, 1)])
def test_the_attention_kernel_is_odd_and_five_at_256_channels(channels: int, kernel: int) -> None:
    floor = math.floor((math.log2(channels) + 1) / 2)
    assert attention_kernel(channels) == kernel == floor + 1 - floor % 2


@pytest.mark.parametrize("form", FORM_NAMES)
def test_a_layer_keeps_the_shape_of_the_embedding(form: str) -> None:
    assert layer_of(form)(embedding(3, 16, 5, 7)).shape == (3, 16, 5, 7)


# --- Step 0 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", IDENTITY_FORMS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_an_identity_form_changes_no_bit_before_training(form: str, seed: int, scale: float) -> None:
    z = embedding(1, 16, 3, 4, seed=seed) * scale
    assert torch.equal(layer_of(form, seed=seed)(z), z)


def test_the_paper_form_does_not_start_as_the_identity() -> None:
    z = embedding(1, 16, 4, 4)
    assert (layer_of("casam")(z) - z).abs().mean() > 0.1


@pytest.mark.parametrize("form", FORM_NAMES)
def test_one_step_of_training_moves_the_output(form: str) -> None:
    layer, z = layer_of(form), embedding(2, 16, 4, 4)
    before = layer(z).detach()
    optimiser = torch.optim.Adam(layer.parameters(), lr=learning_rate_of(form_spec(form)))
    (layer(z) - embedding(2, 16, 4, 4, seed=1)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(layer(z), before)


@pytest.mark.parametrize("form", FORM_NAMES)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator(form: str) -> None:
    torch.manual_seed(1)
    first = weights_of(layer_of(form, seed=7))
    torch.manual_seed(2)
    second = weights_of(layer_of(form, seed=7))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = weights_of(layer_of(form, seed=8))
    differs = any(not np.array_equal(first[name], other[name]) for name in first)
    assert differs == (form != "scale_shift")  # which starts at zero and draws nothing


def test_building_a_layer_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    layer_of("residual")
    assert torch.equal(torch.rand(3), want)


# --- Weights in and out ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORM_NAMES)
def test_weights_taken_from_one_layer_make_another_compute_the_same(form: str) -> None:
    source, target = layer_of(form, seed=1), layer_of(form, seed=2)
    set_weights(target, weights_of(source))
    z = embedding(1, 16, 3, 3)
    assert torch.equal(source(z), target(z))


def test_taken_weights_are_copies() -> None:
    layer = layer_of("low_rank")
    weights = weights_of(layer)
    weights["shift_C"] += 1
    assert not layer.shift_C.any()
    set_weights(layer, weights)
    weights["shift_C"] += 1
    assert torch.equal(layer.shift_C.detach(), torch.ones(16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("shift_C"), ["missing", "shift_C"]),
        (lambda w: w.update(stray=np.zeros(1, np.float32)), ["unexpected", "stray"]),
        (lambda w: w.update(shift_C=np.ones(15, np.float32)), ["shift_C", "(16,)", "(15,)"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change: object, words: list[str]) -> None:
    layer = layer_of("low_rank")
    before = weights_of(layer)
    weights = {name: value + 1 for name, value in before.items()}
    assert callable(change)
    change(weights)
    with pytest.raises(BankError) as refusal:
        set_weights(layer, weights)
    assert all(word in str(refusal.value) for word in words)
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(layer).items())


# --- The registry ----------------------------------------------------------------------------------


def test_an_unknown_form_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ScenarioError, match=r"alignment\.form.*casam, decoder, identity, lora, low_rank.*'mlp'"
    ):
        form_entry("mlp")


def test_the_scenarios_learning_rate_wins_over_the_forms_own() -> None:
    assert learning_rate_of(AlignmentSpec(form="residual")) == 1e-4
    assert learning_rate_of(LowRankSpec()) == 3e-3
    assert learning_rate_of(LowRankSpec(learning_rate=0.5)) == 0.5
