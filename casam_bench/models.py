"""Backbones and layers for measurements: LiteMedSAM with its weights, and SAM's ViT-B with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import AlignmentSpec, BackboneSpec, LowRankSpec
from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.backbones import Backbone, Geometry
from casam_core.model.backbones.base import in_turn
from casam_core.model.backbones.lite_medsam import build_sam_heads, load_lite_medsam
from casam_core.model.backbones.sam import SamBackbone
from casam_core.model.backbones.tiny import GEOMETRY as TINY
from casam_core.model.backbones.window import PIXELS, Window
from casam_core.model.compute import Compute, prepare_process
from casam_core.model.examples import Examples
from casam_core.model.forms import AlignmentLayer, Weights, build_layer, learning_rate_of, set_weights
from casam_core.model.layer_library import LIBRARIES, LayerLibrary
from casam_core.model.prompts import Prompts
from casam_core.model.training import Steps, TrainingResult, train_layer
from casam_core.seeding import initialisers_from
from client.data.dataset import LoadedSample
from client.data.open import open_dataset

SEED, INSTITUTION = 7, "bench"
DEFAULT_FORM = LowRankSpec()


def cpu(threads: int, precision: str = "float32", encoder: str = "plain") -> Compute:
    """This machine's processor, with the process set up for it."""
    compute = Compute(device="cpu", threads=threads, precision=precision, encoder=encoder)
    prepare_process(compute)
    return compute


def lite_medsam(compute: Compute) -> Backbone:
    """LiteMedSAM with the packaged weights; not cached, because benchmarks compare two of them."""
    return load_lite_medsam(BackboneSpec(name="lite_medsam"), compute)


def random_vit_b(compute: Compute) -> Backbone:
    """SAM's ViT-B with its real shapes and random weights, to measure speed only."""
    return random_vit("vit_b", compute)


SMALL = "small"
"""A ViT of SAM's kind, with windows and relative positions, that takes milliseconds on a processor."""


def random_vit(name: str, compute: Compute) -> Backbone:
    """SAM's vit_b, vit_l or vit_h with its real shapes, or SMALL; random weights, to measure speed only."""
    with initialisers_from(SEED):
        encoder, prompt_encoder, mask_decoder = parts_of(name)
        for key, parameter in encoder.named_parameters():
            if "rel_pos" in key:  # zero at first; so they count
                nn.init.normal_(parameter, std=0.1)
    return SamBackbone(
        name=name,
        digest="random",
        geometry=TINY if name == SMALL else Geometry(side=1024, channels=256, cells=64),
        image_encoder=encoder,
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
        compute=compute,
    )


def parts_of(name: str) -> tuple[ImageEncoderViT, PromptEncoder, MaskDecoder]:
    """Image encoder, prompt encoder and mask decoder with their initial weights."""
    if name != SMALL:
        sam = sam_model_registry[name]()
        return sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    encoder = ImageEncoderViT(
        img_size=TINY.side,
        patch_size=TINY.side // TINY.cells,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=TINY.channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=5,
        global_attn_indexes=(1,),
    )
    return encoder, *build_sam_heads(TINY, mlp_dim=64, heads=2, mask_channels=4)


def gflop_of(name: str) -> float:
    """GFLOP of SAM's own encoder on one image, two per multiply-add; nothing is computed."""
    with torch.device("meta"):
        encoder, _, _ = parts_of(name)
        x_13SS = torch.zeros(1, 3, encoder.img_size, encoder.img_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(x_13SS)
    return float(counter.get_total_flops()) / 1e9


def learned(
    backbone: Backbone,
    examples: Examples,
    spec: TrainingSpec,
    *,
    seed: int,
    rng: np.random.Generator,
    form: AlignmentSpec = DEFAULT_FORM,
    start: Weights | None = None,
    steps: Steps | None = None,
) -> tuple[AlignmentLayer, TrainingResult]:
    """A new layer, trained by the product's own loop at the rate of its form, and its losses.

    Args:
        seed: of the initial weights, if there is no start.
        rng, steps: as of casam_core.model.training.train_layer.
    """
    layer, rate = build_layer(form, backbone.geometry.channels, seed), learning_rate_of(form)
    if start is not None:
        set_weights(layer, start)
    return layer, train_layer(layer, backbone, examples, spec, learning_rate=rate, rng=rng, steps=steps)


def phantoms(modality: str, images: int) -> list[LoadedSample]:
    """The first images of a synthetic modality."""
    spec = DataSpec(reader="phantom", phantom=modality, images=max(images, 3))
    dataset = open_dataset(spec, data_root=None, seed=SEED, institution=INSTITUTION)
    return [dataset.load(sample) for sample in dataset.samples[:images]]


class AsReleased:
    """The same backbone with segment_anything's own decoder, which repeats the image for every prompt."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __getattr__(self, name: str) -> object:
        return getattr(self.backbone, name)

    def decode_in(
        self,
        windows: Sequence[Window],
        z_CHW: Tensor,
        prompts: Prompts,
        mask_decoder: MaskDecoder | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As Backbone.decode_in; the whole masks are computed first."""
        boxes = torch.as_tensor(prompts.xy, device=z_CHW.device)
        sparse, dense = self.backbone.prompt_encoder(points=None, boxes=boxes, masks=None)
        with self.backbone.compute.autocast():
            logits_N1hw, iou_N1 = self.backbone.mask_decoder(
                image_embeddings=z_CHW[None],
                image_pe=self.backbone.image_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        masks = zip(windows, logits_N1hw[:, 0].float(), strict=True)
        return [window.of(logits_hw, PIXELS) for window, logits_hw in masks], iou_N1[:, 0].float()

    def decode_images(
        self,
        windows: Sequence[Sequence[Window]],
        z_BCHW: Tensor,
        prompts: Sequence[Prompts],
        mask_decoder: MaskDecoder | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """One image after the other."""
        return in_turn(self.decode_in, windows, z_BCHW, prompts, mask_decoder)


def as_released(backbone: Backbone) -> Backbone:
    """`backbone` with the released decoder, typed as a Backbone."""
    return cast(Backbone, AsReleased(backbone))


def shipped_library() -> LayerLibrary:
    """The library of layers that casam ships for the default backbone and form."""
    digest = PrivacySpec(method="public_start").completed(BackboneSpec(), DEFAULT_FORM).library
    assert digest is not None
    return LIBRARIES.get(digest)
