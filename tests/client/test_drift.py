"""FedProx's term and SCAFFOLD's control variate, compared with figures worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from casam_core.config.named_parts import AlignmentSpec
from casam_core.model.forms import AlignmentLayer, build_layer, set_weights
from client.drift import ControlVariate, proximal

BATCH: Any = None  # neither looks at the batch


def scale_shift(value: float = 0.0) -> AlignmentLayer:
    layer = build_layer(AlignmentSpec(form="scale_shift"), 4, 0)
    set_weights(layer, {name: np.full(4, value, np.float32) for name in ("scale_C", "shift_C")})
    return layer


def test_the_proximal_term_is_half_mu_times_the_squared_distance_from_the_start_of_the_round() -> None:
    layer = scale_shift(1.0)
    term = proximal(layer, 0.5)
    assert float(term(layer, BATCH)) == 0.0
    set_weights(layer, {name: np.full(4, 3.0, np.float32) for name in ("scale_C", "shift_C")})
    found = term(layer, BATCH)
    # 0.5 / 2 * (8 weights * 2^2) = 8; its gradient is 0.5 * 2 = 1 for every weight.
    assert float(found) == 8.0
    found.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(value.grad, torch.ones(4)) for value in layer.parameters())


def test_the_proximal_term_leaves_a_methods_own_term() -> None:
    layer = scale_shift()
    assert float(proximal(layer, 0.5, lambda layer, batch: torch.tensor(2.0))(layer, BATCH)) == 2.0


def stepped(control: ControlVariate, layer: AlignmentLayer, *gradients: float) -> None:
    """One step per gradient, of plain gradient descent at rate 0.1."""
    for gradient in gradients:
        for value in layer.parameters():
            value.grad = torch.full((4,), gradient)
        control(layer)
        with torch.no_grad():
            for value in layer.parameters():
                assert value.grad is not None
                value -= 0.1 * value.grad


def test_the_control_variate_moves_gradients_and_is_their_mean_before_that() -> None:
    layer = scale_shift()
    own, mean = 1.0, 3.0
    control = ControlVariate({name: np.full(4, mean - own, np.float32) for name in ("scale_C", "shift_C")})
    stepped(control, layer, 0.5, 1.5)
    # Two steps with 0.5 + 2 and 1.5 + 2.
    end = -0.1 * (2.5 + 3.5)
    np.testing.assert_allclose(layer.shift_C.detach(), np.full(4, end), rtol=1e-6)
    found = control.mean(layer)
    np.testing.assert_allclose(found["shift_C"], np.full(4, 1.0))
    # The paper's second option for plain gradient descent: (start - end) / (steps * rate) - c + c_own.
    np.testing.assert_allclose(found["shift_C"], np.full(4, (0 - end) / (2 * 0.1) - mean + own), rtol=1e-5)


def test_without_a_step_the_control_variate_is_zero() -> None:
    told = ControlVariate(None).mean(scale_shift())
    assert all(np.array_equal(value, np.zeros(4, np.float32)) for value in told.values())
