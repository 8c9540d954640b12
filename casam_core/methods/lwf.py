"""Learning without forgetting: on new images, keep saying what the old layer says (Li and Hoiem 2016).

penalty = strength * cross-entropy of the new mask probabilities against the old layer's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from casam_core.methods.base import Importance, Method, Penalty, by_shared_entry
from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import Batch, decode_batch

STRENGTH = 1.0


def distillation(start: AlignmentLayer, backbone: Backbone, importance: Importance | None) -> Penalty:
    """The penalty towards what `start` says about the same prompts."""

    def penalty(layer: AlignmentLayer, batch: Batch) -> Tensor:
        with torch.no_grad():
            old_Nhw = torch.sigmoid(decode_batch(start, backbone, batch.drawn).logits_Nhw)
        return STRENGTH * F.binary_cross_entropy_with_logits(batch.logits_Nhw, old_Nhw)

    return penalty


METHOD = Method(
    "One shared layer; on new images it keeps saying what it said before (distillation).",
    shared=True,
    route=by_shared_entry,
    penalty=distillation,
)
