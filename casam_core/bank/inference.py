"""Use entries: the layer of a task, the route of an embedding, the masks of an image.

The evaluation at an institution and the use of a finished bank (casam_use) share these functions, so that
both segment an image in the same way.

z_CHW, z_BCHW: frozen embeddings, float32. f_F: pooled feature. N prompts, H x W image pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from casam_core.bank.entry_file import Entry, Head
from casam_core.errors import BankError, ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.compute import Compute
from casam_core.model.forms import AlignmentLayer, build_layer, form_spec, set_weights
from casam_core.model.forms.finder import PREFIX
from casam_core.model.frame import Frame
from casam_core.model.prompts import Prompts
from casam_core.routing.decision import Route, decide


def entry_layer(entry: Entry, channels: int, backbone: Backbone | None = None) -> AlignmentLayer:
    """The entry's Alignment Layer, ready to use.

    backbone: needed by forms that change SAM itself. Raises BankError if such a form gets None, or if the
    weights do not fit the form.
    """
    about = entry.provenance
    try:
        finder = any(name.startswith(PREFIX) for name in entry.layer)
        spec = form_spec(about.form, {"rank": about.rank, "finder": finder})
        layer = build_layer(spec, channels, 0, backbone)
        set_weights(layer, entry.layer)
    except (BankError, ScenarioError, ValueError) as error:
        raise BankError(f"entry of task {entry.task!r} cannot be used: {one_line(error)}") from error
    return layer.eval().requires_grad_(False)


def route_among(heads: Iterable[Head], score: Callable[[Head], float]) -> Route:
    """The routing decision among the entries that have a threshold, in the order of learning."""
    known = [(head, head.threshold) for head in heads if head.threshold is not None]
    return decide(
        [head.task for head, _ in known],
        [score(head) for head, _ in known],
        [threshold for _, threshold in known],
    )


@torch.no_grad()
def align(seen_CHW: Tensor, layer: AlignmentLayer | None, compute: Compute) -> Tensor:
    """z_CHW after the layer, on the compute device.

    seen_CHW: the input of the layer: z_CHW, or pixels for a form that sees pixels. layer: None is the
    identity, frozen SAM.
    """
    seen_CHW = seen_CHW.to(compute.device)
    if layer is None:
        return seen_CHW
    with compute.autocast():
        aligned: Tensor = layer.to(seen_CHW.device)(seen_CHW[None])[0].float()
    return aligned


@torch.no_grad()
def decode_masks(
    backbone: Backbone,
    z_CHW: Tensor,
    frame: Frame,
    prompts: Prompts,
    layer: AlignmentLayer | None = None,
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    """(masks_nHW, iou_n) of a few prompts at a time; iou_n is the decoder's estimate of the masks' IoU.

    Args:
        z_CHW: on the backbone's device.
        prompts: in pixels of the image; masks have the size of the image.
        layer: the layer that produced z_CHW; it may change the mask decoder.
    """
    decoder = layer.decoder(backbone.mask_decoder) if layer is not None else None
    in_frame = prompts.into(frame)
    some = backbone.compute.prompts_together

    def decoded(turn: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        logits_nhw, iou_n = backbone.decode(z_CHW, in_frame[turn[0] : turn[-1] + 1], decoder)
        return (frame.restore(logits_nhw) > 0).cpu().numpy(), iou_n.cpu().numpy()

    for start in range(0, len(prompts), some):
        together = range(start, min(start + some, len(prompts)))
        yield from backbone.halved.run("prompts decoded together", together, decoded)


def one_line(error: Exception) -> str:
    """The text of an error without line breaks; of a ValidationError, only the first fault."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r}"
    return " ".join(str(error).split())
