"""What an Alignment Layer makes of an image whose mask is known: the number that layer attacks go by.

A layer fits images that it was trained on better than others (Yeom et al. 2018). Loss-based inference takes
the loss itself, or what the layer gained over frozen SAM; likelihood ratios compare the loss with that of
other layers on the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.training import Drawn, Example, Examples, decode_batch, draw_instances

MOST_INSTANCES = 32
"""Per image; an attacker takes all there are, and a slide may hold thousands."""


def visible_images(examples: Examples, images: Sequence[int], backbone: Backbone) -> list[int]:
    """Those of `images` with an instance that is left at the decoder's resolution; others have no loss."""
    return [i for i in images if all_instances(examples[i], backbone) is not None]


@torch.no_grad()
def losses_of(
    layer: AlignmentLayer,
    examples: Examples,
    images: Sequence[int],
    backbone: Backbone,
    progress: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """loss_N: the alignment loss of every image by itself, over its instances, with boxes.

    images: with visible instances. One image at a time, so that a loss does not depend on its neighbours.
    """
    layer.to(backbone.compute.device).eval()
    losses = np.empty(len(images))
    for done, i in enumerate(images):
        drawn = all_instances(examples[i], backbone)
        assert drawn is not None  # the caller asks for visible images
        losses[done] = float(decode_batch(layer, backbone, [drawn]).loss)
        progress(done + 1, len(images))
    return losses


def all_instances(example: Example, backbone: Backbone) -> Drawn | None:
    """The same instances every time: up to MOST_INSTANCES, with boxes; None where none is visible."""
    spec = TrainingSpec(instances=MOST_INSTANCES)
    return draw_instances(example, backbone, spec, "box", np.random.default_rng(0))


def fit_of(losses_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """fit_N: -ln(loss), which is nearer to Gaussian over models than the loss is."""
    return -np.log(np.maximum(losses_N, 1e-12))
