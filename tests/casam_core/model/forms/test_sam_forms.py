"""Forms that change SAM or its decoder: they start as frozen SAM, to the bit; only what they name moves."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.lite_medsam import load_lite_medsam
from casam_core.model.compute import Compute
from casam_core.model.forms import AlignmentLayer, build_layer, form_spec, set_weights, weights_of
from casam_core.model.forms.lora import LoraLayer
from casam_core.model.prompts import Prompts

BOX = Prompts(boxes_N4=np.array([[2, 3, 30, 40]], np.float32))


def layer_on(backbone: Backbone, form: str, seed: int = 0) -> AlignmentLayer:
    return build_layer(form_spec(form, {"rank": 4}), backbone.geometry.channels, seed, backbone)


def logits_of(backbone: Backbone, layer: AlignmentLayer, image: NDArray[np.uint8]) -> Tensor:
    seen_BCHW = backbone.preprocess(image)[None] if layer.sees_pixels else backbone.encode([image])
    logits, _ = backbone.decode(layer(seen_BCHW)[0], BOX, layer.decoder(backbone.mask_decoder))
    return logits


def a_step(backbone: Backbone, layer: AlignmentLayer, image: NDArray[np.uint8]) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.train()
    logits_of(backbone, layer, image).square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    layer.eval()


@pytest.mark.parametrize("form", ["decoder", "lora", "low_rank_decoder"])
def test_at_step_0_it_is_frozen_sam(tiny: Backbone, picture: NDArray[np.uint8], form: str) -> None:
    frozen, _ = tiny.decode(tiny.encode([picture])[0], BOX)
    assert torch.equal(logits_of(tiny, layer_on(tiny, form), picture), frozen)


@pytest.mark.parametrize("form", ["decoder", "lora", "low_rank_decoder"])
def test_a_step_moves_the_layer_and_nothing_of_the_backbone(
    tiny: Backbone, picture: NDArray[np.uint8], form: str
) -> None:
    before = copy.deepcopy(tiny.state_dict())
    layer = layer_on(tiny, form)
    start = weights_of(layer)
    a_step(tiny, layer, picture)
    assert any((weights_of(layer)[name] != value).any() for name, value in start.items())
    assert all(torch.equal(tiny.state_dict()[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in tiny.parameters())


@pytest.mark.parametrize("form", ["decoder", "lora", "low_rank_decoder"])
def test_weights_carry_all_that_was_learned(tiny: Backbone, picture: NDArray[np.uint8], form: str) -> None:
    trained, other = layer_on(tiny, form), layer_on(tiny, form, seed=1)
    a_step(tiny, trained, picture)
    set_weights(other, weights_of(trained))
    assert torch.equal(logits_of(tiny, other, picture), logits_of(tiny, trained, picture))


@pytest.mark.parametrize("form", ["decoder", "lora", "low_rank_decoder"])
def test_a_copy_goes_its_own_way(tiny: Backbone, picture: NDArray[np.uint8], form: str) -> None:
    """Penalties keep a copy of the layer as an earlier stage left it."""
    layer = layer_on(tiny, form)
    anchor = copy.deepcopy(layer)
    frozen = logits_of(tiny, anchor, picture)
    a_step(tiny, layer, picture)
    assert torch.equal(logits_of(tiny, anchor, picture), frozen)
    assert not torch.equal(logits_of(tiny, layer, picture), frozen)


def test_the_decoder_form_has_the_parameters_of_sams_decoder(tiny: Backbone) -> None:
    expected = sum(p.numel() for p in tiny.mask_decoder.parameters())
    assert sum(value.size for value in weights_of(layer_on(tiny, "decoder")).values()) == expected


def test_rank_1_updates_are_added_to_the_attention_of_a_decoder_that_stays_as_it_is(
    tiny: Backbone, picture: NDArray[np.uint8]
) -> None:
    layer = build_layer(form_spec("low_rank_decoder"), tiny.geometry.channels, 0)  # without a backbone
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    by_hand, weights = copy.deepcopy(tiny.mask_decoder), weights_of(layer)
    moved = [name for name, _ in by_hand.transformer.named_parameters() if name.endswith("_proj.weight")]
    for name in moved:
        key = name.removesuffix(".weight").replace(".", "/")
        update = weights[f"decoder_up.{key}"] @ weights[f"decoder_down.{key}"]
        by_hand.transformer.get_parameter(name).data += torch.from_numpy(update)
    assert len(moved) == 28  # queries, keys, values and output of three attentions in two blocks, and of one
    z_CHW = tiny.encode([picture])[0]
    adapted, _ = tiny.decode(z_CHW, BOX, layer.decoder(tiny.mask_decoder))
    torch.testing.assert_close(adapted, tiny.decode(z_CHW, BOX, by_hand)[0])
    assert not torch.allclose(adapted, tiny.decode(z_CHW, BOX)[0], atol=1e-3)


def test_every_rank_1_update_learns(tiny: Backbone, picture: NDArray[np.uint8]) -> None:
    layer = build_layer(form_spec("low_rank_decoder"), tiny.geometry.channels, 0)
    a_step(tiny, layer, picture)  # at first only the factors that are zero have a gradient
    logits_of(tiny, layer, picture).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in layer.parameters())


def test_lora_has_two_thin_matrices_per_attention(tiny: Backbone) -> None:
    """The tiny encoder has one block of width 32, its qkv is 32 -> 96."""
    weights = weights_of(layer_on(tiny, "lora"))
    assert sorted(value.shape for value in weights.values()) == [(4, 32), (96, 4)]


@pytest.mark.parametrize("form", ["decoder", "lora"])
def test_without_a_backbone_it_is_refused_by_name(form: str) -> None:
    with pytest.raises(ScenarioError, match=f"{form}.*changes SAM itself"):
        build_layer(form_spec(form), 32, 0)


def test_without_peft_lora_says_what_to_install(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ScenarioError, match=r"pip install 'casam\[lora\]'"):
        layer_on(tiny, "lora")


@pytest.mark.slow
def test_lora_of_lite_medsam_starts_frozen_and_learns_in_every_attention() -> None:
    backbone = load_lite_medsam(BackboneSpec(), Compute(device="cpu", threads=1, precision="float32"))
    image = np.random.default_rng(0).integers(0, 256, (128, 96, 3), dtype=np.uint8)
    layer = layer_on(backbone, "lora")
    layer.train()
    z_BCHW = layer(backbone.preprocess(image)[None])
    assert torch.equal(z_BCHW, backbone.encode([image]))
    z_BCHW.square().sum().backward()
    ups = {name: value for name, value in layer.named_parameters() if "lora_B" in name}
    assert len(ups) == 10  # TinyViT has attention in 2 + 6 + 2 blocks
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in ups.values())


@pytest.mark.slow
def test_with_a_fast_encoder_lora_is_folded_too_and_the_shared_weights_keep_their_memory() -> None:
    fast = Compute(device="cpu", threads=1, precision="float32", encoder="fast")
    backbone = load_lite_medsam(BackboneSpec(), fast)
    strides = {name: value.stride() for name, value in backbone.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 256, (128, 96, 3), dtype=np.uint8)
    x_B3SS = backbone.preprocess(image)[None]
    layer = layer_on(backbone, "lora")
    assert isinstance(layer, LoraLayer)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in layer.encoder.modules())
    with torch.no_grad():
        torch.testing.assert_close(layer(x_B3SS), backbone.image_encoder(x_B3SS), rtol=1e-3, atol=1e-4)
    layer.train()
    layer(x_B3SS).square().sum().backward()
    ups = [value for name, value in layer.named_parameters() if "lora_B" in name]
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in ups)
    assert {name: value.stride() for name, value in backbone.state_dict().items()} == strides
