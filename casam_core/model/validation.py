"""Validation of a layer on an institution's images: for the best epoch and the fallback to the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer, Weights, set_weights, weights_of
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.training import Drawn, Examples, align, draw_instances

Validate = Callable[[AlignmentLayer], float]
"""Measures the IoU of a layer and restores its mode (training or evaluation)."""


def validator(
    examples: Examples,
    backbone: Backbone,
    spec: TrainingSpec,
    rng: np.random.Generator,
) -> Validate | None:
    """A function from a layer to its IoU; None if no image has a visible instance.

    The IoU is measured with tight boxes at the decoder's resolution and averaged within each image, then over
    images. Seeds drawn here fix the instances, so that every layer is measured on the same ones.
    """
    seeds = rng.integers(2**63, size=len(examples))
    # Tight boxes, and targets at the decoder's resolution.
    spec = spec.model_copy(update={"box_jitter": 0.0, "objective": "casam"})

    def drawn(i: int) -> Drawn | None:
        return draw_instances(examples[i], backbone, spec, "box", np.random.default_rng(seeds[i]))

    # Only the indices are kept; embeddings are read again, so that memory does not grow with the images.
    usable = [i for i in range(len(examples)) if drawn(i) is not None]
    if not usable:
        return None

    def validate(layer: AlignmentLayer) -> float:
        training = layer.training
        layer.to(backbone.compute.device).eval()
        iou = [mean_iou(layer, backbone, d) for i in usable if (d := drawn(i)) is not None]
        layer.train(training)
        return float(np.mean(iou))

    return validate


@torch.no_grad()
def mean_iou(layer: AlignmentLayer, backbone: Backbone, drawn: Drawn) -> float:
    """Mean IoU of one image's masks (logits above 0) against their targets."""
    aligned_CHW = align(layer, backbone, [drawn])[0]
    logits_Nhw, _ = backbone.decode(aligned_CHW, drawn.prompts, layer.own_decoder())
    predicted, target = logits_Nhw.flatten(1) > 0, drawn.target_Nhw.flatten(1) > 0
    return float(((predicted & target).sum(1) / (predicted | target).sum(1)).mean())


def beats_identity(layer: AlignmentLayer, channels: int, validate: Validate) -> bool:
    """Whether the layer segments the validation images better than frozen SAM does."""
    return validate(layer) > validate(IdentityLayer(channels))


class BestEpoch:
    """It remembers the best layer so far, and can stop the training early.

    Call it after every epoch; True means stop: `patience` epochs without a better one. `restore` loads the
    best weights.
    """

    def __init__(self, validate: Validate, patience: int | None) -> None:
        self.validate = validate
        self.patience = patience
        self._history: list[float] = []
        self._best: Weights = {}

    def __call__(self, layer: AlignmentLayer) -> bool:
        iou = self.validate(layer)
        if not self._history or iou > max(self._history):
            self._best = weights_of(layer)
        self._history.append(iou)
        return self.patience is not None and since_best(self._history) >= self.patience

    def restore(self, layer: AlignmentLayer) -> None:
        """Load the weights of the best epoch; without a finished epoch, do nothing."""
        if self._best:
            set_weights(layer, self._best)


def since_best(history: Sequence[float]) -> int:
    """The number of epochs since the (first) best one."""
    return len(history) - 1 - int(np.argmax(history))
