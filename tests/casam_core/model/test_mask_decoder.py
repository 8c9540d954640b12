"""The decoder that does not repeat the image per prompt: SAM's own masks, estimates and gradients."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from casam_core.model.backbones.mask_decoder import decode_prompts
from tests.banks import tiny_backbone

Decoded = tuple[Tensor, Tensor]


def by_sam(decoder: MaskDecoder, z_CHW: Tensor, sparse_NTC: Tensor, dense_NCHW: Tensor) -> Decoded:
    """segment_anything's own forward."""
    logits_N1hw, iou_N1 = decoder(
        image_embeddings=z_CHW[None],
        image_pe=tiny_backbone().image_pe,
        sparse_prompt_embeddings=sparse_NTC,
        dense_prompt_embeddings=dense_NCHW,
        multimask_output=False,
    )
    return logits_N1hw[:, 0], iou_N1[:, 0]


def by_us(decoder: MaskDecoder, z_CHW: Tensor, sparse_NTC: Tensor, dense_NCHW: Tensor) -> Decoded:
    return decode_prompts(decoder, z_CHW, tiny_backbone().image_pe, sparse_NTC, dense_NCHW[:1])


def prompted(prompts: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """(z_CHW that takes gradients, sparse_NTC, dense_NCHW)."""
    generator = torch.Generator().manual_seed(prompts)
    z_CHW = torch.randn(32, 8, 8, generator=generator, requires_grad=True)
    xy = torch.rand(prompts, 4, generator=generator) * 30 + torch.tensor([0.0, 0.0, 30.0, 30.0])
    points = (xy[:, None, :2], torch.ones(prompts, 1)) if kind == "point" else None
    boxes = xy if kind == "box" else None
    sparse, dense = tiny_backbone().prompt_encoder(points=points, boxes=boxes, masks=None)
    return z_CHW, sparse, dense


@pytest.mark.parametrize("prompts", [1, 2, 7])
@pytest.mark.parametrize("kind", ["box", "point"])
def test_masks_estimates_and_gradients_are_sams(prompts: int, kind: str) -> None:
    decoder = tiny_backbone().mask_decoder
    found = []
    for decode in (by_sam, by_us):
        z_CHW, sparse, dense = prompted(prompts, kind)
        logits_Nhw, iou_N = decode(decoder, z_CHW, sparse, dense)
        assert logits_Nhw.shape == (prompts, 32, 32)
        (logits_Nhw.sigmoid().sum() + iou_N.sum()).backward()  # type: ignore[no-untyped-call]
        found.append((logits_Nhw.detach(), iou_N.detach(), z_CHW.grad))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_decoder_that_is_trained_gets_sams_gradients() -> None:
    z_CHW, sparse, dense = prompted(3, "box")
    gradients = []
    for decode in (by_sam, by_us):
        decoder = MaskDecoder(
            transformer_dim=32, transformer=tiny_backbone().mask_decoder.transformer, iou_head_hidden_dim=32
        )
        decoder.load_state_dict(tiny_backbone().mask_decoder.state_dict())
        logits_Nhw, iou_N = decode(decoder, z_CHW.detach(), sparse, dense)
        (logits_Nhw.sigmoid().sum() + iou_N.sum()).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    want, got = gradients
    # SAM computes four masks and returns one: of the other three nothing comes back but zeros.
    unused = {name for name, gradient in want.items() if not gradient.any()}
    assert want.keys() - unused <= got.keys()
    for name in want.keys() - unused:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5, msg=name)
