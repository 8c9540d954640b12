"""Validation of a layer on an institution's images: for the best epoch and the fallback to the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Examples, held
from casam_core.model.forms import AlignmentLayer, Weights, set_weights, weights_of
from casam_core.model.forms.finder import without_finder
from casam_core.model.training import Drawn, align, draw_instances, side_of


@dataclass(frozen=True)
class Validated:
    """By image, means over its masks: the IoU, and the decoder's estimate of it."""

    iou_N: NDArray[np.float64]
    estimate_N: NDArray[np.float64]

    @property
    def iou(self) -> float:
        """Mean over images."""
        return float(self.iou_N.mean())

    @property
    def correction(self) -> float:
        """What the estimates lack on the mean."""
        return float((self.iou_N - self.estimate_N).mean())


Validate = Callable[[AlignmentLayer], Validated]
"""Measures a layer on validation images and restores its mode (training or evaluation)."""


TESTED_INSTANCES = 16
"""Instances of a validation image in the fallback's test: of four, an image's gain scatters twice as much."""


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
    spec = as_measured(spec)
    examples = held(examples, backbone, side_of(backbone, spec))

    def drawn(i: int) -> Drawn | None:
        return draw_instances(examples[i], backbone, spec, "box", np.random.default_rng(seeds[i]))

    # Only the indices are kept; embeddings are read again, so that memory does not grow with the images.
    usable = [i for i in range(len(examples)) if drawn(i) is not None]
    if not usable:
        return None

    def validate(layer: AlignmentLayer) -> Validated:
        training = layer.training
        layer.to(backbone.compute.device).eval()
        found = [iou_and_estimate(layer, backbone, d) for i in usable if (d := drawn(i)) is not None]
        layer.train(training)
        iou_N, estimate_N = torch.stack(found).cpu().double().numpy().T
        return Validated(iou_N, estimate_N)

    return validate


def as_measured(spec: TrainingSpec) -> TrainingSpec:
    """The draws of a measurement: tight boxes, and targets at the decoder's resolution."""
    return spec.model_copy(update={"box_jitter": 0.0, "objective": "casam"})


@torch.no_grad()
def iou_and_estimate(layer: AlignmentLayer, backbone: Backbone, drawn: Drawn) -> Tensor:
    """Two means over one image's masks, on the device: the IoU (logits above 0), and the estimate of it."""
    aligned_CHW = align(layer, backbone, [drawn])[0]
    logits_Nhw, estimate_N = backbone.decode(aligned_CHW, drawn.prompts, layer.decoder(backbone.mask_decoder))
    predicted, target = logits_Nhw.flatten(1) > 0, drawn.target_Nhw.flatten(1) > 0
    iou_N = (predicted & target).sum(1) / (predicted | target).sum(1)
    return torch.stack([iou_N.mean(), estimate_N.mean()])


LEVEL = 0.3
"""The test's level: how often a layer that is as good as frozen SAM is kept by chance."""


def beats_identity(found: Validated, frozen: Validated) -> bool:
    """Whether a layer for which `found` was measured is clearly better than frozen SAM."""
    return clearly_above_zero(found.iou_N - frozen.iou_N)


def clearly_above_zero(gains_N: NDArray[np.float64], level: float = LEVEL) -> bool:
    """Student's paired one-sided test of the images' gains; of a single image, its gain alone."""
    images, mean = len(gains_N), float(gains_N.mean())
    error = float(gains_N.std(ddof=1)) / images**0.5 if images > 1 else 0.0
    if error == 0 or mean <= 0:
        return mean > 0
    return float(special.stdtr(images - 1, mean / error)) > 1 - level


def take_best(layer: AlignmentLayer, starts: Sequence[Weights], validate: Validate) -> None:
    """Give `layer` the weights with the highest IoU; of equal ones, the first. One alone is not measured."""
    if len(starts) == 1:
        return set_weights(layer, starts[0])
    found = []
    for weights in starts:
        set_weights(layer, weights)
        found.append(validate(layer).iou)
    set_weights(layer, starts[int(np.argmax(found))])


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
        self._history.append(self.validate(layer).iou)
        if since_best(self._history) == 0:
            self._best = without_finder(weights_of(layer))
        return self.patience is not None and since_best(self._history) >= self.patience

    def restore(self, layer: AlignmentLayer) -> None:
        """Load the weights of the best epoch; without a finished epoch, do nothing.

        A finder keeps those of the last epoch: the masks of given boxes say nothing about it.
        """
        if self._best:
            set_weights(layer, weights_of(layer) | self._best)


def since_best(history: Sequence[float]) -> int:
    """The number of epochs since the (first) best one."""
    return len(history) - 1 - int(np.argmax(history))
