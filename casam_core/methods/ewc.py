"""Elastic weight consolidation: what mattered for earlier tasks may move little (Kirkpatrick et al. 2017).

penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher information, summed
over the tasks learned so far; theta* the weights the stage starts from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from casam_core.methods.base import Importance, Method, Penalty, by_shared_entry
from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import Batch

STRENGTH = 1000.0


def elastic(start: AlignmentLayer, backbone: Backbone, importance: Importance | None) -> Penalty:
    """The penalty around `start`; without importance (the first stage) it is zero."""
    anchor = {name: value.detach().clone() for name, value in start.named_parameters()}
    weight = {
        name: torch.from_numpy(value).to(anchor[name].device) for name, value in (importance or {}).items()
    }

    def penalty(layer: AlignmentLayer, batch: Batch) -> Tensor:
        terms = [
            (weight[name] * (value - anchor[name]).square()).sum()
            for name, value in layer.named_parameters()
            if name in weight
        ]
        return STRENGTH / 2 * torch.stack(terms).sum() if terms else torch.zeros(())

    return penalty


METHOD = Method(
    "One shared layer; elastic weight consolidation holds what earlier tasks need.",
    shared=True,
    route=by_shared_entry,
    penalty=elastic,
    weighs=True,
)
