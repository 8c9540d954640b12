"""The training loss: each term by hand, against plain Python, and what must always hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casam_core.model.losses import (
    alignment_loss,
    alignment_loss_together,
    dice_loss,
    focal_loss,
    official_loss,
    soft_iou,
)

HUGE = 1e4


def masks(seed: int, count: int = 2, side: int = 3) -> tuple[Tensor, Tensor]:
    """(logits, targets) of random instances."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, side, side)
    return 3 * torch.randn(shape, generator=generator), (torch.rand(shape, generator=generator) > 0.6).float()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pixels(logits: Tensor, target: Tensor) -> list[list[tuple[float, float]]]:
    """(probability, target) of every pixel, per instance."""
    return [
        [(sigmoid(x), t) for x, t in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)]
        for one, other in zip(logits, target, strict=True)
    ]


def plain_focal(logits: Tensor, target: Tensor) -> float:
    """-alpha (1 - p)^2 ln p of the true class, alpha 0.25 for foreground and 0.75 for background."""
    terms = []
    for instance in pixels(logits, target):
        for p, t in instance:
            true, alpha = (p, 0.25) if t else (1 - p, 0.75)
            terms.append(-alpha * (1 - true) ** 2 * math.log(true))
    return sum(terms) / len(terms)


def plain_dice(logits: Tensor, target: Tensor) -> float:
    losses = []
    for instance in pixels(logits, target):
        overlap, total = sum(p * t for p, t in instance), sum(p + t for p, t in instance)
        losses.append(1 - (2 * overlap + 1) / (total + 1))
    return sum(losses) / len(losses)


def plain_soft_iou(logits: Tensor, target: Tensor) -> list[float]:
    values = []
    for instance in pixels(logits, target):
        overlap, total = sum(p * t for p, t in instance), sum(p + t for p, t in instance)
        values.append(overlap / (total - overlap))
    return values


def test_undecided_pixels_by_hand() -> None:
    # Probability 1/2 everywhere, two of four pixels are foreground.
    logits = torch.zeros(1, 2, 2)
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert float(focal_loss(logits, target)) == pytest.approx((0.25 + 0.75) / 2 * 0.25 * math.log(2))
    assert float(dice_loss(logits, target)) == pytest.approx(1 - 3 / 5)
    assert soft_iou(logits, target).tolist() == pytest.approx([1 / 3])
    want = 20 * 0.125 * math.log(2) + 0.4 + (0.5 - 1 / 3) ** 2
    assert float(alignment_loss(logits, torch.tensor([0.5]), target)) == pytest.approx(want)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_every_term_agrees_with_plain_python(seed: int, count: int) -> None:
    logits, target = masks(seed, count)
    assert float(focal_loss(logits, target)) == pytest.approx(plain_focal(logits, target), rel=1e-3, abs=1e-6)
    assert float(dice_loss(logits, target)) == pytest.approx(plain_dice(logits, target), abs=1e-5)
    assert soft_iou(logits, target).tolist() == pytest.approx(plain_soft_iou(logits, target), abs=1e-5)
    claimed = torch.linspace(0, 1, count)
    squares = [(a - b) ** 2 for a, b in zip(claimed.tolist(), plain_soft_iou(logits, target), strict=True)]
    want = 20 * plain_focal(logits, target) + plain_dice(logits, target) + sum(squares) / count
    assert float(alignment_loss(logits, claimed, target)) == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_a_perfect_mask_with_an_honest_estimate_costs_nothing() -> None:
    target = masks(0)[1]
    logits = (2 * target - 1) * HUGE
    assert float(alignment_loss(logits, torch.ones(2), target)) == pytest.approx(0, abs=1e-6)
    assert soft_iou(logits, target).tolist() == pytest.approx([1, 1])


def test_confident_wrong_masks_stay_finite() -> None:
    target = masks(0)[1]
    logits = (1 - 2 * target) * HUGE
    assert math.isfinite(float(alignment_loss(logits, torch.ones(2), target)))
    assert soft_iou(logits, target).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_an_empty_target_and_an_empty_prediction_stay_finite() -> None:
    empty = torch.zeros(1, 3, 3)
    assert soft_iou(empty - HUGE, empty).tolist() == [0.0]
    assert float(dice_loss(empty - HUGE, empty)) == pytest.approx(0)


def test_the_loss_of_a_batch_is_the_mean_over_its_instances() -> None:
    logits, target = masks(1, 3)
    estimates = torch.tensor([0.1, 0.5, 0.9])
    single = [alignment_loss(logits[i : i + 1], estimates[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(alignment_loss(logits, estimates, target), torch.stack(single).mean())


def test_the_iou_error_teaches_the_estimate_and_not_the_mask() -> None:
    logits, target = masks(2)
    logits.requires_grad_()
    estimates = torch.zeros(2, requires_grad=True)
    alignment_loss(logits, estimates, target).backward()
    assert logits.grad is not None
    assert estimates.grad is not None
    with_error, wanted = logits.grad.clone(), soft_iou(logits, target).detach()
    torch.testing.assert_close(estimates.grad, -wanted)  # d/de mean (e - w)^2 at e = 0, N = 2
    logits.grad = None
    alignment_loss(logits, wanted, target).backward()  # no error at all: the same gradient for the mask
    torch.testing.assert_close(logits.grad, with_error)


# --- The objective of the authors' public code -----------------------------------------------------


def plain_official(logits: list[float], estimates: list[float], target: list[float]) -> float:
    """The formulas of the authors' utils.py in plain Python, over all pixels of a batch in one list."""
    focal = overlap = total = 0.0
    for x, t in zip(logits, target, strict=True):
        p = sigmoid(x)
        focal -= 0.25 * t * (1 - p) ** 2 * math.log(p + 1e-12)
        focal -= 0.75 * (1 - t) * p**2 * math.log(1 - p + 1e-12)
        overlap, total = overlap + p * t, total + p + t
    dice = 1 - (2 * overlap + 1) / (total + 1)
    iou = (overlap + 1e-7) / (total - overlap + 1e-7)
    return focal / len(target) + dice + sum((iou - e) ** 2 for e in estimates) / len(estimates)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_the_official_loss_and_its_gradients_agree_with_plain_python(seed: int, count: int) -> None:
    logits, target = (x.double() for x in masks(seed, count))
    estimates = torch.linspace(0, 1, count, dtype=torch.float64)
    inputs = [*logits.flatten().tolist(), *estimates.tolist()]

    def plain(values: list[float]) -> float:
        return plain_official(values[: logits.numel()], values[logits.numel() :], target.flatten().tolist())

    logits.requires_grad_()
    estimates.requires_grad_()
    loss = official_loss(logits, estimates, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(plain(inputs), abs=1e-9)
    assert logits.grad is not None
    assert estimates.grad is not None
    found = [*logits.grad.flatten().tolist(), *estimates.grad.tolist()]
    for i, gradient in enumerate(found):
        step = 1e-5
        up, down = (plain([*inputs[:i], inputs[i] + d, *inputs[i + 1 :]]) for d in (step, -step))
        assert gradient == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_the_official_loss_enlarges_masks_to_the_targets_size() -> None:
    # Bilinear, pixel centres: along a side, 2 pixels a and b become a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, b.
    a, b = -2.0, 3.0
    row = [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b]
    target = torch.tensor([0.0, 0, 1, 1]).expand(1, 4, 4)
    loss = official_loss(torch.tensor([[[a, b], [a, b]]]), torch.tensor([0.5]), target)
    assert float(loss) == pytest.approx(plain_official(4 * row, [0.5], 4 * [0.0, 0, 1, 1]), abs=1e-6)


def test_the_official_iou_error_teaches_the_mask_too() -> None:
    logits, target = masks(2)
    gradients = []
    for estimate in (0.0, 1.0):
        logits = logits.detach().requires_grad_()
        official_loss(logits, torch.full((2,), estimate), target).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        gradients.append(logits.grad)
    assert not torch.allclose(*gradients)


def test_losses_of_masks_of_different_sizes_together_are_the_mean_of_them() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (8, 8), (12, 4), (16, 16)]
    logits = [(3 * torch.randn(shape, generator=rng)).requires_grad_() for shape in shapes]
    targets = [(torch.rand(shape, generator=rng) > 0.6).float() for shape in shapes]
    iou_N = torch.rand(4, generator=rng).requires_grad_()
    each = zip(logits, iou_N, targets, strict=True)
    wanted = torch.stack([alignment_loss(lo[None], iou[None], t[None], 256) for lo, iou, t in each]).mean()
    found = alignment_loss_together(logits, iou_N, targets, 256)
    torch.testing.assert_close(found, wanted)
    inputs = [*logits, iou_N]
    for one, other in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)
