"""The interface of a frozen Segment Anything backbone.

Shapes: B images, C embedding channels, H' x W' embedding cells, S the input frame's side,
N prompts, h x w the decoder's low-resolution masks.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from casam_core.model.backbones.fast_encoder import FastEncoder
from casam_core.model.backbones.mask_decoder import decode_prompts, decode_together
from casam_core.model.backbones.window import PIXELS, Window, whole
from casam_core.model.compute import Compute, Halved
from casam_core.model.frame import Frame, frame_of, pad_to_square
from casam_core.model.prompts import Prompts


@dataclass(frozen=True)
class Geometry:
    """side: of the input frame, in pixels. channels, cells: an embedding is channels x cells x cells."""

    side: int
    channels: int
    cells: int

    @property
    def low(self) -> int:
        """Side of the decoder's mask logits."""
        return PIXELS * self.cells


class Backbone(nn.Module):
    """Image encoder, prompt encoder and mask decoder; none of its parameters is trained.

    digest: SHA-256 of the weights; two backbones with the same digest give equal embeddings.
    """

    def __init__(
        self,
        *,
        name: str,
        digest: str,
        geometry: Geometry,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        compute: Compute,
    ) -> None:
        super().__init__()
        self.name = name
        self.digest = digest
        self.geometry = geometry
        self.compute = compute
        self.halved = Halved()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.requires_grad_(False).eval().to(compute.device)
        self.image_pe: Tensor = prompt_encoder.get_dense_pe()

    @property
    def transform(self) -> str:
        """A name of the preprocessing; part of the key of every embedding."""
        return f"{self.name}-{self.geometry.side}-{self.normalisation}"

    @property
    @abstractmethod
    def normalisation(self) -> str:
        """A name of the normalisation of pixel values."""

    @abstractmethod
    def normalise(self, x_3hw: Tensor) -> Tensor:
        """x_3hw float32 from an image's values 0..255 at its inner size; on any device."""

    def frame(self, image_HW3: NDArray[np.uint8]) -> Frame:
        """The place of the image in the input frame."""
        return frame_of(image_HW3, self.geometry.side)

    def resized(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        """image_hw3 uint8 at its inner size, in the processor's memory."""
        return torch.from_numpy(self.frame(image_HW3).resize_image(image_HW3).copy())

    def framed(self, image_hw3: Tensor) -> Tensor:
        """x_3SS float32: normalised and padded, where the resized image is."""
        return pad_to_square(self.normalise(image_hw3.permute(2, 0, 1).float()), self.geometry.side)

    def preprocess(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        """x_3SS float32: resized, normalised, padded."""
        return self.framed(self.resized(image_HW3))

    @cached_property
    def preprocessing(self) -> str:
        """16 hex digits: a hash of `preprocess` on a fixed picture.

        Two institutions with the same weights but different image libraries can resize images differently;
        then their hashes differ.
        """
        y, x, channel = np.ogrid[:300, :500, :3]
        picture = ((7 * x + 13 * y + 31 * channel + (x * y) // 50) % 256).astype(np.uint8)
        seen = self.preprocess(picture).numpy().astype("<f4")
        return hashlib.sha256(f"{self.transform}\0".encode() + seen.tobytes()).hexdigest()[:16]

    def encode(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """z_BCHW float32 on the compute device, one embedding per uint8 HxWx3 image."""
        return self.encode_resized([self.resized(image) for image in images])

    def encode_resized(self, images: Sequence[Tensor]) -> Tensor:
        """The same for images at their inner size (see `resized`).

        Raises RunError if the device's memory does not suffice for half of them.
        """
        parts = self.halved.run("images encoded together", images, self._encode)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.no_grad()
    def _encode(self, images: Sequence[Tensor]) -> Tensor:
        # An accelerator gets bytes, a quarter of what floats are, and normalises them itself.
        x_B3SS = torch.stack([self.framed(self.compute.moved(image)) for image in images])
        if self.compute.encoder != "plain":
            z_BCHW: Tensor = self._fast_encoder(x_B3SS)
            return z_BCHW
        with self.compute.autocast():
            z_BCHW = self.image_encoder(x_B3SS)
        return z_BCHW.float()

    @cached_property
    def _fast_encoder(self) -> FastEncoder:
        """The fast encoder, created at first use. The form `lora` needs the original `image_encoder`."""
        return FastEncoder(self.image_encoder, self.compute)

    def decode(
        self, z_CHW: Tensor, prompts: Prompts, mask_decoder: MaskDecoder | None = None
    ) -> tuple[Tensor, Tensor]:
        """(logits_Nhw, iou_N) float32 of N >= 1 prompts on one embedding, one mask per prompt.

        Gradients flow to z_CHW.

        Args:
            prompts: in pixels of the frame.
            mask_decoder: used instead of SAM's own.
        """
        everywhere = [whole(self.geometry.cells)] * len(prompts)
        logits, iou_N = self.decode_in(everywhere, z_CHW, prompts, mask_decoder)
        return torch.stack(logits), iou_N

    def decode_in(
        self,
        windows: Sequence[Window],
        z_CHW: Tensor,
        prompts: Prompts,
        mask_decoder: MaskDecoder | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As `decode`, with the logits in the window of each prompt only."""
        if self.compute.accelerated:
            return self.decode_together([windows], z_CHW[None], [prompts], mask_decoder)
        decoder, tokens_NTC = mask_decoder or self.mask_decoder, self.tokens([prompts])
        dense_MCHW = self._dense([prompts])
        with self.compute.autocast():
            logits, iou_N = decode_prompts(decoder, z_CHW, self.image_pe, tokens_NTC, dense_MCHW, windows)
        return [logits_hw.float() for logits_hw in logits], iou_N.float()

    def decode_images(
        self,
        windows: Sequence[Sequence[Window]],
        z_BCHW: Tensor,
        prompts: Sequence[Prompts],
        mask_decoder: MaskDecoder | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As `decode_in`, for the prompts of B images, all of the same kinds."""
        if self.compute.accelerated:
            return self.decode_together(windows, z_BCHW, prompts, mask_decoder)
        return in_turn(self.decode_in, windows, z_BCHW, prompts, mask_decoder)

    def decode_together(
        self,
        windows: Sequence[Sequence[Window]],
        z_BCHW: Tensor,
        prompts: Sequence[Prompts],
        mask_decoder: MaskDecoder | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """`decode_images` in as few calls as an accelerator wants."""
        decoder, tokens_NTC = mask_decoder or self.mask_decoder, self.tokens(prompts)
        dense_MCHW = self._dense(prompts)
        if prompts[0].masks_Nhw is not None:  # no two prompts see the same cells
            each = zip(z_BCHW, prompts, strict=True)
            z_BCHW = torch.cat([z_CHW.expand(len(some), -1, -1, -1) for z_CHW, some in each])
            windows = [[window] for of_image in windows for window in of_image]
        with self.compute.autocast():
            logits, iou_N = decode_together(decoder, z_BCHW, self.image_pe, tokens_NTC, dense_MCHW, windows)
        return [logits_hw.float() for logits_hw in logits], iou_N.float()

    def tokens(self, prompts: Sequence[Prompts]) -> Tensor:
        """tokens_NTC of the prompts of all images, as SAM makes them: of points, then of boxes.

        All prompts are of the same kinds, so there is no search for kinds, for which an accelerator would
        have to wait.
        """
        encoder, first, parts = self.prompt_encoder, prompts[0], []
        if first.points_NP2 is not None:
            xy_NP2 = self._together([p.points_NP2 for p in prompts])
            points_NQ2 = F.pad(xy_NP2 + 0.5, (0, 0, 0, 1))  # SAM adds a point that is none
            placed_NQC = encoder.pe_layer.forward_with_coords(points_NQ2, encoder.input_image_size)
            beside_on_2C = torch.cat([kind.weight for kind in encoder.point_embeddings[:2]])
            on = 1 if first.labels_NP is None else self._together([p.labels_NP for p in prompts])
            parts.append(placed_NQC[:, :-1] + beside_on_2C[on])
            if first.boxes_N4 is None:
                parts.append(encoder.not_a_point_embed.weight.expand(len(xy_NP2), 1, -1))
        if first.boxes_N4 is not None:
            parts.append(encoder._embed_boxes(self._together([p.boxes_N4 for p in prompts])))
        return torch.cat(parts, dim=1)

    def _dense(self, prompts: Sequence[Prompts]) -> Tensor:
        """dense_MCHW that SAM adds to an embedding: of each prompt's earlier mask; M = 1 if there is none."""
        if prompts[0].masks_Nhw is None:
            weight_1C: Tensor = self.prompt_encoder.no_mask_embed.weight
            return weight_1C[:, :, None, None]
        masks_N1hw = self._together([p.masks_Nhw for p in prompts])[:, None]
        dense_NCHW: Tensor = self.prompt_encoder._embed_masks(masks_N1hw)
        return dense_NCHW

    def _together(self, parts: Sequence[NDArray[Any] | None]) -> Tensor:
        """The same part of the prompts of all images, on the compute device."""
        there = [part for part in parts if part is not None]
        return self.compute.moved(torch.from_numpy(np.concatenate(there)))


def in_turn(
    decode: Callable[[Sequence[Window], Tensor, Prompts, MaskDecoder | None], tuple[list[Tensor], Tensor]],
    windows: Sequence[Sequence[Window]],
    z_BCHW: Tensor,
    prompts: Sequence[Prompts],
    mask_decoder: MaskDecoder | None,
) -> tuple[list[Tensor], Tensor]:
    """The results of `decode` (see `Backbone.decode_in`) on one image after the other."""
    each = zip(windows, z_BCHW, prompts, strict=True)
    parts = [decode(w, z_CHW, p, mask_decoder) for w, z_CHW, p in each]
    logits = [logits_hw for some, _ in parts for logits_hw in some]
    return logits, torch.cat([iou_N for _, iou_N in parts])
