"""`casam predict` as a person types it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casam import Prediction, Segmenter, load_bank
from casam_core.bank.bank import Bank
from client.data.dataset import LoadedSample
from scenarios.commands.bank_commands import png_of
from scenarios.inspection.survey import overlay_of
from tests.banks import files_of, picture, tiny_backbone, tiny_bank, tiny_entry
from tests.casam_command import Casam

BOX, OTHER = "12,10,35,29", "2,2,20,20"


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path) -> None:
    """A bank and an image of one of its tasks."""
    tiny_bank(tmp_path / "bank")
    Image.fromarray(picture("polyp")).save(tmp_path / "image.png")


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
        (["--box", BOX, "--backbone", "vit_b"], "checkpoint"),
        (["--box", BOX, "--backbone", "vit_b", "--checkpoint", "image.png"], "wrong checkpoint"),
        (["--box", BOX, "--backbone", "lite_medsam"], "was learned on a backbone of SHA-256"),
        (["--box", BOX, "--device", "abacus"], "abacus"),
        (["--box", BOX, "--threads", "0"], "threads"),
        (["--box", BOX, "--bank", "nowhere"], "no bank at"),
        (["--box", BOX, "--out", "mask.jpg"], ".png"),
        (["--box", BOX, "--out", "image.png"], "exists already"),
        (["--box", BOX, "--out", "new/mask.png"], "expected the folder new to exist"),
        (["--box", BOX, "--overlay", "image.png"], "--overlay: image.png exists already"),
        (["--box", BOX, "--overlay", "mask.png"], "--overlay: expected another file than --out"),
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
