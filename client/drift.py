"""Local training that drifts less where the holders of a task differ: FedProx and SCAFFOLD.

The other strategies (server/aggregation.py) change only how the server merges layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import Batch

Term = Callable[[AlignmentLayer, Batch], Tensor]


def proximal(start: AlignmentLayer, mu: float, other: Term | None = None) -> Term:
    """FedProx (Li et al. 2020): mu / 2 * |w - w_start|^2, in addition to the `other` term.

    start: copied now, so it may be the layer that is trained.
    """
    anchor = {name: value.detach().clone() for name, value in start.named_parameters()}

    def term(layer: AlignmentLayer, batch: Batch) -> Tensor:
        apart = torch.stack(
            [
                (value - anchor[name].to(value.device)).square().sum()
                for name, value in layer.named_parameters()
            ]
        ).sum()
        return mu / 2 * apart + (other(layer, batch) if other else 0.0)

    return term


class ControlVariate:
    """SCAFFOLD (Karimireddy et al. 2020): each gradient is moved by the mean control variate minus the own.

    The new control variate is the mean gradient of the round. For plain gradient descent this is the paper's
    second option, (start - end) / (steps * rate) - c + c_own; unlike that one it is right for Adam, too.

    shift: by parameter, c - c_own; None in the first round.
    """

    def __init__(self, shift: Mapping[str, NDArray[np.float32]] | None) -> None:
        self._shift = {name: torch.from_numpy(np.array(value)) for name, value in (shift or {}).items()}
        self._sum: dict[str, Tensor] = {}
        self._steps = 0

    def __call__(self, layer: AlignmentLayer) -> None:
        self._steps += 1
        for name, value in layer.named_parameters():
            if value.grad is None:
                continue
            seen = self._sum.get(name)
            self._sum[name] = value.grad.clone() if seen is None else seen + value.grad
            if name in self._shift:
                value.grad += self._shift[name].to(value.grad.device)

    def mean(self, layer: AlignmentLayer) -> dict[str, NDArray[np.float32]]:
        """By parameter of `layer`, the mean gradient; zeros if there was no step."""
        nothing = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
        sums = nothing | self._sum
        return {name: (sums[name].detach() / max(self._steps, 1)).cpu().numpy() for name in nothing}
