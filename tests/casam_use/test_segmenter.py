"""A finished bank in use: the same masks as in evaluation, refusals by name, the documented example."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import casam
from casam import LoadedBank, Segmenter, backbone_for, load_bank
from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import decode_masks
from casam_core.errors import BankError, PromptError, ScenarioError
from casam_core.model.compute import Halved
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.forms.finder import PREFIX, Finder, found
from casam_core.model.prompts import Prompts
from casam_use.loaded_bank import channels_of, entry_router
from tests.banks import picture, tiny_backbone, tiny_bank, tiny_entry

ROOT = Path(__file__).resolve().parents[2]
BOX = (12, 10, 35, 29)


@pytest.fixture
def bank(tmp_path: Path) -> LoadedBank:
    tiny_bank(tmp_path / "bank")
    return load_bank(tmp_path / "bank")


def changed(entry: Entry, **provenance: object) -> Entry:
    return replace(entry, provenance=replace(entry.provenance, **provenance))  # type: ignore[arg-type]


def test_prompts_that_do_not_fit_are_decoded_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, image_HW3 = tiny_backbone(), picture("polyp")
    z_CHW, frame = backbone.encode([image_HW3])[0], backbone.frame(image_HW3)
    boxes = Prompts(boxes_N4=np.array([BOX] * 4, np.float32) + np.arange(4, dtype=np.float32)[:, None])
    wanted = np.concatenate([masks for masks, _ in decode_masks(backbone, z_CHW, frame, boxes)])
    decode, asked = backbone.decode, list[int]()

    def limited(z_CHW: torch.Tensor, prompts: Prompts, *rest: Any) -> Any:
        asked.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(z_CHW, prompts, *rest)

    monkeypatch.setattr(backbone, "decode", limited)
    monkeypatch.setattr(backbone, "halved", Halved())
    for _ in range(2):
        found = np.concatenate([masks for masks, _ in decode_masks(backbone, z_CHW, frame, boxes)])
        np.testing.assert_array_equal(found, wanted)
    assert asked == [4, 2, 2, 2, 2]
    assert backbone.halved.names == ["prompts decoded together"]


def test_a_form_that_changes_the_mask_decoder_segments_with_its_own(tmp_path: Path) -> None:
    backbone, image_HW3 = tiny_backbone(), picture("polyp")
    folder = Bank.open(tmp_path / "bank", create=True)
    folder.add(tiny_entry("polyp", "low_rank_decoder"))
    bank = load_bank(tmp_path / "bank")
    layer, z_1CHW = bank["polyp"].layer, backbone.encode([image_HW3]).half().float()
    frame, boxes = backbone.frame(image_HW3), Prompts(boxes_N4=np.array([BOX], np.float32))
    ((wanted_1HW, wanted_1),) = decode_masks(backbone, layer(z_1CHW)[0], frame, boxes, layer)
    ((_, frozen_1),) = decode_masks(backbone, layer(z_1CHW)[0], frame, boxes)
    prediction = Segmenter(backbone, bank).predict(image_HW3, [BOX], task="polyp")
    np.testing.assert_array_equal(prediction.masks_NHW, wanted_1HW)
    assert prediction.iou_N == wanted_1 != frozen_1


# --- Routing and layers ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["polyp", "histology"])
def test_an_image_goes_to_its_own_task(bank: LoadedBank, task: str) -> None:
    prediction = Segmenter(tiny_backbone(), bank).predict(picture(task), [BOX])
    assert prediction.name == prediction.route.nearest == task
    assert prediction.threshold == bank[task].entry.threshold
    assert prediction.route.score is not None
    assert prediction.route.score <= prediction.threshold


def test_an_unknown_image_goes_to_frozen_sam(bank: LoadedBank) -> None:
    segmenter, image = Segmenter(tiny_backbone(), bank), np.zeros((48, 64, 3), np.uint8)
    prediction = segmenter.predict(image, [BOX])
    assert prediction.name == "identity"
    assert prediction.route.nearest is not None
    forced = segmenter.predict(image, [BOX], task="identity")
    np.testing.assert_array_equal(prediction.masks_NHW, forced.masks_NHW)


def test_a_route_per_embedding_whatever_its_neighbours(bank: LoadedBank) -> None:
    z_BCHW = tiny_backbone().encode([picture("polyp"), picture("histology"), picture("polyp", 1)])
    routes = bank.route(z_BCHW)
    assert [route.name for route in routes] == ["polyp", "histology", "polyp"]
    assert routes[1:2] == bank.route(z_BCHW[1:2])


def test_every_task_is_scored_as_its_router_scores(bank: LoadedBank) -> None:
    z_1CHW = Segmenter(tiny_backbone(), bank).embed(picture("polyp"))
    feature = torch.cat([z_1CHW.mean((2, 3)), z_1CHW.flatten(2).std(2, correction=0)], 1)[0]
    want = [entry_router(bank[task].entry).score(feature, bank[task].entry.router) for task in bank]
    (route,) = bank.route(z_1CHW)
    assert route.score == min(want)


def test_a_layer_computes_its_formula_and_is_frozen(bank: LoadedBank) -> None:
    z_BCHW = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = {name: torch.from_numpy(value) for name, value in bank["polyp"].entry.layer.items()}
    matrix = torch.eye(32) + weights["up_CR"] @ weights["down_RC"]
    want = torch.einsum("cd,bdhw->bchw", matrix, z_BCHW) + weights["shift_C"][:, None, None]
    got = bank["polyp"].layer(z_BCHW)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not got.requires_grad
    assert bank["polyp"].layer is bank["polyp"].layer


def test_a_loaded_bank_cannot_be_changed(bank: LoadedBank) -> None:
    with pytest.raises(TypeError):
        bank["polyp"] = bank["histology"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        bank["polyp"].layer = torch.nn.Identity()  # type: ignore[misc]


@pytest.mark.parametrize("form", ["casam", "residual", "low_rank"])
def test_channels_are_read_off_every_form(form: str) -> None:
    assert channels_of(tiny_entry("polyp", form)) == 32


def test_an_empty_bank_is_frozen_sam(tmp_path: Path) -> None:
    Bank.open(tmp_path / "bank", create=True)
    bank = load_bank(tmp_path / "bank")
    prediction = Segmenter(tiny_backbone(), bank).predict(picture("polyp"), [BOX])
    assert (prediction.name, prediction.threshold, len(bank)) == ("identity", None, 0)
    with pytest.raises(BankError, match="empty bank"):
        backbone_for(bank)


# --- The segmenter ---------------------------------------------------------------------------------


def test_masks_are_those_of_the_backbone_behind_the_layer(bank: LoadedBank, tmp_path: Path) -> None:
    image, backbone = picture("polyp"), tiny_backbone()
    _, z_CHW = EmbeddingStore(tmp_path / "store").embed(image, backbone)
    frame = backbone.frame(image)
    prompts = Prompts(boxes_N4=np.array([BOX], np.float32)).into(frame)
    with torch.no_grad():
        logits_Nhw, iou_N = backbone.decode(bank["polyp"].layer(z_CHW[None])[0], prompts)
    prediction = Segmenter(backbone, bank).predict(image, [BOX])
    np.testing.assert_array_equal(prediction.masks_NHW, (frame.restore(logits_Nhw) > 0).numpy())
    np.testing.assert_array_equal(prediction.iou_N, iou_N.numpy())


def test_an_entry_corrects_the_estimates_of_its_own_masks(bank: LoadedBank) -> None:
    told = LoadedBank([replace(loaded.entry, correction=-0.25) for loaded in bank.values()], "digest")
    image = picture("polyp")

    def estimate(known: LoadedBank, task: str | None = None) -> float:
        return float(Segmenter(tiny_backbone(), known).predict(image, [BOX], task=task).iou_N[0])

    assert estimate(told) == pytest.approx(max(0.0, estimate(bank) - 0.25))
    assert estimate(told, "identity") == estimate(bank, "identity")


def test_boxes_come_before_points_and_the_later_mask_shows(bank: LoadedBank) -> None:
    boxes = [(x, 5, x + 15, 25) for x in range(12)]  # more than one decode holds
    prediction = Segmenter(tiny_backbone(), bank).predict(picture("polyp"), boxes, points=[(20, 20)])
    assert prediction.masks_NHW.shape == (13, 48, 64)
    assert prediction.iou_N.shape == (13,)
    labels_HW = prediction.labels
    np.testing.assert_array_equal(labels_HW == 13, prediction.masks_NHW[12])
    np.testing.assert_array_equal(labels_HW > 0, prediction.masks_NHW.any(0))


def test_a_forced_task_answers_and_the_route_is_still_told(bank: LoadedBank) -> None:
    segmenter = Segmenter(tiny_backbone(), bank)
    prediction = segmenter.predict(picture("polyp"), [BOX], task="histology")
    assert (prediction.name, prediction.route.name) == ("histology", "polyp")


@pytest.mark.parametrize(
    ("boxes", "points", "words"),
    [
        ([], [], "at least one"),
        ([(0, 0, 64, 10)], [], "x in 0..63"),
        ([(0, 0, 10, 48)], [], "y in 0..47"),
        ([(20, 0, 10, 10)], [], "x0 <= x1"),
        ([(float("nan"), 0, 10, 10)], [], "box nan"),
        ([], [(-1, 0)], "point -1,0"),
        ([(1, 2, 3)], [], "box x0,y0,x1,y1"),
        ([("a", 0, 1, 1)], [], "box x0,y0,x1,y1"),
        (7, [], "box x0,y0,x1,y1"),
    ],
)
def test_prompts_that_do_not_fit_are_named(
    bank: LoadedBank, boxes: object, points: object, words: str
) -> None:
    with pytest.raises(PromptError, match=re.escape(words)):
        Segmenter(tiny_backbone(), bank).predict(picture("polyp"), boxes, points=points)  # type: ignore[arg-type]


def test_an_image_that_is_no_rgb_image_is_refused(bank: LoadedBank) -> None:
    with pytest.raises(PromptError, match="uint8"):
        Segmenter(tiny_backbone(), bank).predict(np.zeros((48, 64, 3)), [BOX])  # type: ignore[arg-type]


# --- Refusals --------------------------------------------------------------------------------------


def test_a_task_that_is_not_there_is_refused_by_name(bank: LoadedBank) -> None:
    with pytest.raises(BankError, match=r"'spleen'.*polyp, histology"):
        bank["spleen"]
    with pytest.raises(BankError, match="'spleen'"):
        Segmenter(tiny_backbone(), bank).predict(picture("polyp"), [BOX], task="spleen")


def test_another_backbone_is_refused_with_both_hashes() -> None:
    other = LoadedBank([changed(tiny_entry("polyp"), backbone="f" * 64)], "digest")
    with pytest.raises(BankError, match=f"{'f' * 64}.*{tiny_backbone().digest}"):
        Segmenter(tiny_backbone(), other)
    with pytest.raises(BankError, match="not a released model"):
        backbone_for(other)


def test_the_backbone_of_a_bank_is_found_by_its_hash(bank: LoadedBank) -> None:
    assert backbone_for(bank).digest == bank.backbone
    with pytest.raises(ScenarioError, match="vit_x"):
        backbone_for(bank, "vit_x")
    with pytest.raises(ScenarioError, match="'abacus'"):
        backbone_for(bank, device="abacus")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "spline"}, "spline"),
        ({"rank": 3}, "down_RC"),
        ({"rank": 0}, "rank"),
        ({"router": "oracle"}, "oracle"),
        ({"features": "colour"}, "colour"),
        ({"features": "attention"}, "does not score"),
    ],
)
def test_an_entry_that_cannot_work_is_refused_when_loading(change: dict[str, object], words: str) -> None:
    with pytest.raises(BankError, match=words) as refusal:
        LoadedBank([changed(tiny_entry("polyp"), **change)], "digest")
    assert "\n" not in str(refusal.value)
    assert "polyp" in str(refusal.value)


def test_entries_that_cannot_be_compared_are_refused() -> None:
    other = changed(tiny_entry("histology"), backbone="f" * 64)
    with pytest.raises(BankError, match="backbone"):
        LoadedBank([tiny_entry("polyp"), other], "digest")


@pytest.mark.parametrize("shape", [(32, 8, 8), (1, 16, 8, 8)])
def test_an_embedding_of_another_shape_is_refused(bank: LoadedBank, shape: tuple[int, ...]) -> None:
    with pytest.raises(BankError, match="C = 32"):
        bank.route(torch.zeros(shape))


# --- The package -----------------------------------------------------------------------------------


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the documented example, where it looks for them."""
    tiny_bank(tmp_path / "bank")
    Image.fromarray(picture("polyp")).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("documented")
def test_the_example_of_the_package_runs() -> None:
    result = doctest.testmod(casam)
    assert result.attempted >= 9
    assert result.failed == 0


@pytest.mark.usefixtures("documented")
def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "using-a-bank.md").read_text(), re.DOTALL)
    exec(compile(code, "using-a-bank.md", "exec"), {})
    assert capsys.readouterr().out.startswith("polyp")


def test_importing_the_package_is_light_and_knows_no_flower() -> None:
    code = (
        "import sys, casam\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "casam.Segmenter, casam.load_bank\n"
        "assert 'torch' in sys.modules and not {'flwr', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_promised_name_is_there() -> None:
    for name in casam.__all__:
        assert getattr(casam, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        casam.magic  # noqa: B018


def test_a_bank_with_a_finder_of_an_earlier_version_opens_and_finds_the_same(tmp_path: Path) -> None:
    """Such a finder knew one kind of instances: five rows in its last layer, in the file of an entry."""
    torch.manual_seed(0)
    learned, finder = tiny_entry("polyp"), Finder(tiny_backbone().geometry.channels)
    torch.nn.init.normal_(finder.out.weight, std=0.5)
    torch.nn.init.constant_(finder.out.bias, 4.0)  # it finds some of its kind, whatever the weights
    arrays = {f"{PREFIX}{name}": value.numpy() for name, value in finder.state_dict().items()}
    for name in (f"{PREFIX}out.weight", f"{PREFIX}out.bias"):
        arrays[name] = arrays[name][:5]
    Bank.open(tmp_path / "bank", create=True).add(replace(learned, layer={**learned.layer, **arrays}))
    opened = load_bank(tmp_path / "bank")["polyp"]
    assert opened.entry.layer[f"{PREFIX}out.bias"].shape == (5,)
    assert opened.layer.finder is not None
    z_1CHW = tiny_backbone().encode([picture("polyp")])
    with torch.no_grad():
        own_NHW, want_NHW = opened.layer.finder(z_1CHW)[0], finder(z_1CHW)[0]
    torch.testing.assert_close(own_NHW[:5], want_NHW[:5], rtol=2e-3, atol=2e-3)  # an entry's halves
    assert set(found(own_NHW, 4.0, 0.2, 99).kind_N) == {0}
