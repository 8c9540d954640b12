"""`casam predict` as a person types it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casam import Prediction, Segmenter, load_bank
from casam_core.bank.bank import Bank
from casam_core.errors import PromptError
from casam_core.model.prompts import Prompts
from casam_core.routing.decision import Route
from casam_use.telling import nothing_found, png_of
from casam_use.user_prompts import SURE
from client.data.dataset import LoadedSample
from scenarios.inspection.survey import overlay_of
from tests.banks import files_of, picture, tiny_backbone, tiny_bank, tiny_entry
from tests.casam_command import Casam

BOX, OTHER = "12,10,35,29", "2,2,20,20"
EARLIER = np.zeros((48, 64), np.uint8)
EARLIER[12:26, 14:33] = 1


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path) -> None:
    """A bank, an image of one of its tasks, and masks that fit it or do not."""
    tiny_bank(tmp_path / "bank")
    Image.fromarray(picture("polyp")).save(tmp_path / "image.png")
    masks = {"earlier": EARLIER, "small": EARLIER[:30, :32], "empty": EARLIER & 0, "two": EARLIER * 1}
    masks["two"][40:, 50:] = 2
    for name, mask_HW in masks.items():
        Image.fromarray(mask_HW).save(tmp_path / f"{name}.png")


def facts(out: str) -> dict[str, str]:
    """The printed lines by their first word."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}


def test_predict_says_who_answers_and_writes_the_masks(tmp_path: Path, casam: Casam) -> None:
    arguments = ("--box", BOX, "--box", OTHER, "--point", "20,20")
    result = casam("predict", "image.png", "--bank", "bank", *arguments, "--out", "mask.png")
    assert result.status == 0, result.err
    bank = load_bank(tmp_path / "bank")
    want = Segmenter(tiny_backbone(), bank).predict(
        picture("polyp"), [(12, 10, 35, 29), (2, 2, 20, 20)], points=[(20, 20)]
    )
    said = facts(result.out)
    assert said["route"] == said["nearest"] == "polyp"
    assert said["score"] == f"{want.route.score:.6g}"
    assert said["threshold"] == f"{bank['polyp'].entry.threshold:.6g}"
    assert said["mask"] == "mask.png"
    estimates = [line for line in result.out.splitlines() if line.startswith("prompt")]
    assert [f"IoU estimate {iou:.3f}" in line for iou, line in zip(want.iou_N, estimates, strict=True)] == [
        True
    ] * 3
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), want.labels)


def test_a_route_can_be_chosen(tmp_path: Path, casam: Casam) -> None:
    bank = load_bank(tmp_path / "bank")
    for task in ("identity", "histology"):
        out = f"{task}.png"
        result = casam("predict", "image.png", "--bank", "bank", "--box", BOX, "--task", task, "--out", out)
        assert facts(result.out)["route"] == f"{task} (chosen with --task)"
        assert facts(result.out)["nearest"] == "polyp"
        want = Segmenter(tiny_backbone(), bank).predict(picture("polyp"), [(12, 10, 35, 29)], task=task)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / out)), want.labels)


ONE_OBJECT: list[tuple[list[str], dict[str, Any]]] = [
    (["--one", "--box", BOX, "--point", "20,20"], {"boxes": [(12, 10, 35, 29)], "points": [(20, 20)]}),
    (
        ["--point", "20,20", "--point", "25,18:1", "--point", "3,3:0", "--negative", "60,44"],
        {"points": [(20, 20), (25, 18), (3, 3), (60, 44)], "labels": [1, 1, 0, 0]},
    ),
    (
        ["--negative", "3,3", "--mask", "earlier.png"],
        {"points": [(3, 3)], "labels": [0], "mask": EARLIER},
    ),
    (["--box", BOX, "--mask", "earlier.png"], {"boxes": [(12, 10, 35, 29)], "mask": EARLIER}),
]


@pytest.mark.parametrize(("arguments", "asked"), ONE_OBJECT)
def test_all_prompts_can_be_of_one_object(
    tmp_path: Path, casam: Casam, arguments: list[str], asked: dict[str, Any]
) -> None:
    """The command, the Python API and the backbone itself give the same mask."""
    result = casam("predict", "image.png", "--bank", "bank", *arguments, "--out", "mask.png", "--json")
    assert result.status == 0, result.err
    segmenter = Segmenter(tiny_backbone(), load_bank(tmp_path / "bank"))
    found = segmenter.predict(picture("polyp"), one_object=True, **asked)
    assert len(json.loads(result.out)["prompts"]) == len(found.masks_NHW) == 1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), found.labels)
    points_P2 = np.array(asked.get("points", ()), np.float32).reshape(-1, 2)
    labels_P = np.array(asked.get("labels", [1] * len(points_P2)))
    small_hw = np.pad(EARLIER[1::2, 1::2], ((0, 8), (0, 0)))  # the decoder's masks are 32 x 32 of 64 x 64
    logits_hw = np.where(small_hw, SURE, -SURE).astype(np.float32)
    by_hand = Prompts(
        boxes_N4=np.array(asked["boxes"], np.float32) if "boxes" in asked else None,
        points_NP2=points_P2[None] if len(points_P2) else None,
        labels_NP=labels_P[None] if len(points_P2) else None,
        masks_Nhw=logits_hw[None] if "mask" in asked else None,
    )
    z_1CHW = segmenter.embed(picture("polyp"))
    z_CHW = segmenter.bank["polyp"].layer(z_1CHW)[0]
    logits_1hw, _ = segmenter.backbone.decode(z_CHW, by_hand)
    want_1HW = segmenter.backbone.frame(picture("polyp")).restore(logits_1hw) > 0
    np.testing.assert_array_equal(found.masks_NHW, want_1HW.numpy())


def test_points_without_a_word_are_of_several_objects(casam: Casam) -> None:
    arguments = ("--point", "20,20", "--point", "40,40", "--out", "mask.png", "--json")
    said = casam("predict", "image.png", "--bank", "bank", *arguments)
    assert len(json.loads(said.out)["prompts"]) == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"points": [(1, 2)], "labels": [1, 0]}, "for each of 1 points"),
        ({"points": [(1, 2)], "labels": [2]}, "labels: expected 1"),
        ({"points": [(1, 2)], "labels": [0]}, "negative points alone"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    segmenter = Segmenter(tiny_backbone(), load_bank(tmp_path / "bank"))
    with pytest.raises(PromptError, match=words):
        segmenter.predict(picture("polyp"), **asked)


def test_an_empty_bank_answers_with_frozen_sam(tmp_path: Path, casam: Casam) -> None:
    Bank.open(tmp_path / "empty", create=True)
    result = casam(
        "predict", "image.png", "--bank", "empty", "--box", BOX, "--backbone", "tiny", "--out", "mask.png"
    )
    assert facts(result.out)["route"] == "identity"
    assert facts(result.out)["score"] == "-"


def test_many_labels_fit(tmp_path: Path) -> None:
    labels_HW = np.arange(400, dtype=np.int32).reshape(20, 20)
    (tmp_path / "many.png").write_bytes(png_of(labels_HW))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many.png")), labels_HW)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "at least one box or point"),
        (["--box", "1,2,3"], "--box: expected 4 numbers"),
        (["--box", "a,b,c,d"], "--box: expected 4 numbers"),
        (["--point", "1,2,3"], "--point: expected 2 numbers"),
        (["--box", "12,10,64,29"], "box 12,10,64,29: expected x in 0..63"),
        (["--box", "35,10,12,29"], "x0 <= x1"),
        (["--box", BOX, "--task", "spleen"], "'spleen'"),
        (["--box", BOX, "--backbone", "vit_x"], "vit_x"),
        (["--box", BOX, "--backbone", "vit_b"], "needs its official file: give --checkpoint FILE"),
        (["--box", BOX, "--backbone", "vit_b", "--checkpoint", "image.png"], "wrong checkpoint"),
        (["--box", BOX, "--backbone", "lite_medsam"], "was learned on a backbone of SHA-256"),
        (["--box", BOX, "--device", "abacus"], "abacus"),
        (["--box", BOX, "--threads", "0"], "threads"),
        (["--box", BOX, "--bank", "nowhere"], "no bank at"),
        (["--box", BOX, "--out", "mask.jpg"], ".png"),
        (["--box", BOX, "--out", "image.png"], "exists already"),
        (["--box", BOX, "--out", "new/mask.png"], "expected the folder new to exist"),
        (["--box", BOX, "--out", "/proc/mask.png"], "--out: expected a file that can be written"),
        (["--box", BOX, "--out", f"{'x' * 245}.png"], "File name too long"),
        (["--box", BOX, "--overlay", f"{'x' * 300}.png"], "--overlay: expected a file that can be written"),
        (["--box", BOX, "--overlay", "image.png"], "--overlay: image.png exists already"),
        (["--box", BOX, "--overlay", "mask.png"], "--overlay: expected another file than --out"),
        (["--point", "20,64"], "point 20,64: expected x in 0..63 and y in 0..47"),
        (["--box", BOX, "--negative", "-1,3"], "point -1,3: expected x in 0..63"),
        (["--point", "20,20:2"], "--point: expected X,Y, X,Y:1 or X,Y:0, found '20,20:2'"),
        (["--point", "20,20:"], "--point: expected X,Y, X,Y:1 or X,Y:0"),
        (["--negative", "20"], "--negative: expected 2 numbers"),
        (["--negative", "20,20", "--point", "9,9:0"], "found 2 negative points alone"),
        (["--one"], "expected a box or a point of the object, found none"),
        (["--one", "--box", BOX, "--box", OTHER], "at most one box for one object, found 2"),
        (["--mask", "earlier.png"], "a point of the object beside the earlier mask, found none"),
        (["--box", BOX, "--mask", "small.png"], "expected 64 x 48 pixels, as the image has, found 32 x 30"),
        (["--box", BOX, "--mask", "two.png"], "mask: expected one object (one value beside 0), found 2"),
        (["--box", BOX, "--mask", "empty.png"], "mask: expected one object (one value beside 0), found 0"),
        (["--box", BOX, "--mask", "nowhere.png"], "nowhere.png"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, casam: Casam, arguments: list[str], words: str
) -> None:
    before = files_of(tmp_path)
    given = ["--bank", "bank", "--out", "mask.png", *arguments]  # the last of an option counts
    assert words in casam("predict", "image.png", *given).refusal
    assert files_of(tmp_path) == before


def test_an_image_that_cannot_be_read_is_refused(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    line = casam("predict", "broken.png", "--bank", "bank", "--box", BOX, "--out", "mask.png").refusal
    assert "broken.png" in line


def test_a_bank_of_weights_that_were_never_released_asks_for_them(tmp_path: Path, casam: Casam) -> None:
    entry = tiny_entry("polyp")
    other = replace(entry, provenance=replace(entry.provenance, backbone="f" * 64))
    Bank.open(tmp_path / "other", create=True).add(other)
    line = casam("predict", "image.png", "--bank", "other", "--box", BOX, "--out", "mask.png").refusal
    assert "f" * 64 in line
    assert "--checkpoint" in line


def test_an_empty_mask_is_a_warning(tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Segmenter.predict

    def nothing(self: Segmenter, *arguments: object, **options: object) -> Prediction:
        found = whole(self, *arguments, **options)  # type: ignore[arg-type]
        return replace(found, masks_NHW=found.masks_NHW & False)

    monkeypatch.setattr(Segmenter, "predict", nothing)
    result = casam("predict", "image.png", "--bank", "bank", "--box", BOX, "--out", "mask.png", "--json")
    assert result.status == 0
    assert result.err.strip() == (
        "warning: prompt 1: the mask is empty (0 pixels). The image was recognised as 'polyp'; move the "
        "box or "
        "point onto the object, or try frozen SAM: --task identity"
    )
    assert json.loads(result.out)["prompts"][0]["pixels"] == 0
    arguments = ("--bank", "bank", "--box", BOX, "--out", "other.png", "--task", "identity")
    assert casam("predict", "image.png", *arguments).err.strip() == (
        "warning: prompt 1: the mask is empty (0 pixels). You chose frozen SAM; move the box or point onto "
        "the "
        f"object, or try a task of the bank: --task {next(iter(load_bank(tmp_path / 'bank')))}"
    )


def test_an_image_of_no_task_is_told_in_words(
    tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Segmenter.predict

    def nothing(self: Segmenter, *arguments: object, **options: object) -> Prediction:
        found = whole(self, *arguments, **options)  # type: ignore[arg-type]
        return replace(found, masks_NHW=found.masks_NHW & False, name="identity")

    monkeypatch.setattr(Segmenter, "predict", nothing)
    said = casam("predict", "image.png", "--bank", "bank", "--box", BOX, "--out", "mask.png").err
    assert "The image fits no task of the bank, so frozen SAM answered" in said


@pytest.mark.parametrize(("task", "unknown"), [(None, True), ("polyp", False)])
def test_frozen_sam_finds_nothing_also_in_an_image_that_fits_a_task(task: str | None, unknown: bool) -> None:
    none_N = np.zeros(0, np.float32)
    route = Route(task, "polyp", 0.5)
    prediction = Prediction(np.zeros((0, 4, 4), bool), none_N, "identity", route, 0.4, none_N)
    assert ("the image fits no task" in nothing_found(prediction)) is unknown


def test_an_overlay_shows_the_image_with_the_outline_of_every_mask(tmp_path: Path, casam: Casam) -> None:
    result = casam(
        *("predict", "image.png", "--bank", "bank", "--box", BOX, "--box", OTHER),
        *("--out", "mask.png", "--overlay", "seen.png"),
    )
    assert result.status == 0, result.err
    assert facts(result.out)["overlay"] == "seen.png"
    labels_HW = np.asarray(Image.open(tmp_path / "mask.png")).astype(np.int32)
    seen_HW3 = np.asarray(Image.open(tmp_path / "seen.png"))
    np.testing.assert_array_equal(seen_HW3, overlay_of(LoadedSample(picture("polyp"), labels_HW)))
    assert (seen_HW3 != picture("polyp")).any()
