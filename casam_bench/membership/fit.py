"""How well a layer or a router fits an image: the basis of attacks.

A layer fits its training images better than others (Yeom et al. 2018). Attacks by loss use the loss itself,
or the gain over frozen SAM. Likelihood ratios compare the loss with the losses of other layers on the same
image. Members are nearer to the state of a router that was fitted to them than other images of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example, Examples
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import Drawn, decode_batch, draw_instances
from casam_core.routing.routers import Arrays, Router

MEASURED = TrainingSpec(instances=32)
"""The product's loss, over at most 32 instances of an image. An attacker would use all instances, but a slide
can hold thousands."""


def visible_images(examples: Examples, images: Sequence[int], backbone: Backbone) -> list[int]:
    """Those of `images` with a visible instance at the decoder's resolution; other images have no loss."""
    return [i for i in images if all_instances(examples[i], backbone) is not None]


@torch.no_grad()
def losses_of(
    layer: AlignmentLayer,
    examples: Examples,
    images: Sequence[int],
    backbone: Backbone,
    progress: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """loss_N: the alignment loss of each image over its instances, with boxes as prompts.

    images: indices of images with visible instances. They are decoded one at a time, so that a loss does not
    depend on other images.
    """
    layer.to(backbone.compute.device).eval()
    losses = np.empty(len(images))
    for done, i in enumerate(images):
        drawn = all_instances(examples[i], backbone)
        assert drawn is not None  # the caller passes only visible images
        losses[done] = float(decode_batch(layer, backbone, [drawn]).loss(MEASURED))
        progress(done + 1, len(images))
    return losses


def all_instances(example: Example, backbone: Backbone) -> Drawn | None:
    """Up to MEASURED.instances instances with boxes, the same in every call; None if none is visible."""
    return draw_instances(example, backbone, MEASURED, "box", np.random.default_rng(0))


def fit_of(losses_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """fit_N: -ln(loss). Over models, it is closer to a Gaussian than the loss."""
    return -np.log(np.maximum(losses_N, 1e-12))


def fits_of(router: Router, f_NF: Tensor, state: Arrays) -> NDArray[np.float64]:
    """fit_N: the negative score of every feature, so that a higher value is nearer to the task."""
    return np.array([-router.score(f_F, state) for f_F in f_NF])
