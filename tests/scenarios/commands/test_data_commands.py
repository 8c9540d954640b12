"""`casam data` as a person types it: tables, every fault, leaks, and pictures that stay private."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from client.data.dataset import LoadedSample
from scenarios.commands.cli import main
from scenarios.inspection.survey import Survey, leaks_between, overlay_of
from scenarios.inspection.understand import understand
from tests.client.data.readers import test_coco, test_med_datasets, test_nifti, test_tiff_stack
from tests.client.data.readers.dicom import test_dicom
from tests.conftest import phantom, tiny_table

RNG = np.random.default_rng(0)
MASK = np.zeros((6, 8), np.uint8)
MASK[1:4, 2:5] = 1

Casam = Callable[..., tuple[int, str]]


@pytest.fixture
def casam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Casam:
    """The command: (status, all it printed with single spaces)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["casam", "data", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, " ".join((out + err).split())

    return call


def put(root: Path, name: str, image: np.ndarray, mask: np.ndarray = MASK) -> Path:
    for folder, values in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / folder / f"{name}.png")
    return root


def images(root: Path, count: int = 6, prefix: str = "p") -> Path:
    for number in range(count):
        put(root, f"{prefix}{number}", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return root


def test_a_sound_folder(tmp_path: Path, casam: Casam) -> None:
    images(tmp_path / "set")
    put(tmp_path / "set", "q", RNG.integers(0, 9999, (6, 8)).astype(np.uint16))
    status, text = casam("check", tmp_path / "set", "--group-pattern", "(.*)")
    assert status == 0
    for part in ("7, 7 readable", "RGB 8-bit: 6", "gray 16-bit: 1", "8 x 6", "1 to 1, median 1", "0 faults"):
        assert part in text
    assert "cannot see whether" not in text
    assert "7 images name no patient" in casam("check", "set")[1]


def test_masks_with_one_value_and_several_regions_need_a_word(tmp_path: Path, casam: Casam) -> None:
    """Masks of 0 and 255 are common: without a word all nuclei of an image would be one instance."""
    two = np.zeros((6, 8), np.uint8)
    two[1:3, 1:3] = two[4:6, 5:7] = 255
    for number in range(6):
        put(tmp_path / "set", f"p{number}", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), two)
    status, text = casam("check", "set")
    assert status == 1
    assert "found one value in every mask and up to 2 separate regions in 6 of 6 masks" in text
    status, text = casam("check", "set", "--labels", "classes")
    assert (status, "2 to 2, median 2" in text) == (0, True)
    status, text = casam("check", "set", "--labels", "instances")
    assert (status, "1 to 1, median 1" in text) == (0, True)
    put(tmp_path / "set", "numbered", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.maximum(two, MASK))
    assert casam("check", "set")[0] == 0  # one mask numbers its objects, so the values are numbers


def test_one_mask_with_a_stray_value_does_not_hide_the_doubt_about_the_others(
    tmp_path: Path, casam: Casam
) -> None:
    two = np.zeros((6, 8), np.uint8)
    two[1:3, 1:3] = two[4:6, 5:7] = 255
    for number in range(12):
        mask = two.copy()
        mask[0, 7] = 9 * (number == 3)
        put(tmp_path / "set", f"p{number}", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), mask)
    status, text = casam("check", "set")
    assert status == 1
    assert "found one value in most masks and up to 2 separate regions in 11 of 12 masks" in text


@pytest.mark.parametrize("labels", ["instances", "classes"])
def test_masks_that_were_jpeg_or_scaled_are_a_fault(tmp_path: Path, casam: Casam, labels: str) -> None:
    """Each gray value along the edges would be an object, whatever the values mean."""
    round_HW = np.hypot(*(np.mgrid[:40, :40] - 20)) < 12
    sharp = Image.fromarray(round_HW.astype(np.uint8) * 255)
    scaled = sharp.resize((60, 60), Image.Resampling.BILINEAR)
    lossy = BytesIO()
    sharp.save(lossy, "JPEG", quality=90)
    for folder, blurred in (("scaled", scaled), ("lossy", Image.open(lossy))):
        for number in range(4):
            mask = np.asarray(blurred)
            image = RNG.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
            put(tmp_path / folder, f"p{number}", image, mask)
        status, text = casam("check", folder, "--labels", labels)
        assert status == 1
        assert "in 4 of 4 masks; export the masks again without loss" in text
    for number in range(4, 12):
        image = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        put(tmp_path / "lossy", f"p{number}", image, np.asarray(sharp))
    status, text = casam("check", "lossy")
    assert status == 0
    assert "note blurred edges" in text
    assert "in 4 of 12 masks: look at them" in text


def test_all_faults_are_printed(tmp_path: Path, casam: Casam) -> None:
    images(tmp_path / "set")
    put(tmp_path / "set", "empty", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), MASK * 0)
    put(tmp_path / "set", "small", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), MASK[:5])
    (tmp_path / "set" / "images" / "p0.png").write_bytes(b"")
    status, text = casam("check", "set")
    assert status == 1
    assert text.count("FAULT") == 3
    for part in (
        "found only background (0)",
        "found 8 x 5",
        "cannot be read",
        "3 faults",
        "8, 5 readable",
    ):
        assert part in text


def test_a_folder_that_cannot_be_opened_tells_both_sides(tmp_path: Path, casam: Casam) -> None:
    images(tmp_path / "set")
    (tmp_path / "set" / "images" / "p0.png").unlink()
    (tmp_path / "set" / "masks" / "p1.png").unlink()
    status, text = casam("check", "set")
    assert status == 1
    assert "(p1.png) without" in text
    assert "(p0.png) without" in text
    assert casam("check", "nowhere")[0] == 2


def test_copies_within_a_part_are_told_and_across_parts_are_faults(tmp_path: Path, casam: Casam) -> None:
    image = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for name in ("a-1", "a-2"):
        put(tmp_path / "one-patient", name, image)
    images(tmp_path / "one-patient")
    status, text = casam("check", "one-patient", "--group-pattern", r"^(\w+)")
    assert status == 0
    assert "1 set (a-1 = a-2) of images with the same pixels within one part" in text
    for number in range(8):
        put(tmp_path / "copies", str(number), image)
    status, text = casam("check", "copies")
    assert status == 1
    assert "leakage: expected different images in training, validation and test" in text


def test_scenario_checks_every_institution(tmp_path: Path, casam: Casam) -> None:
    images(tmp_path / "data" / "north")
    images(tmp_path / "data" / "south", prefix="s")
    kept = (tmp_path / "data" / "north" / "images").iterdir()
    for number, file in enumerate(sorted(kept)):
        # The same six images in another order: some train in the north and are tested in the south.
        target = tmp_path / "data" / "south" / "images" / f"s{5 - number}.png"
        target.write_bytes(file.read_bytes())
    sites: list[dict[str, Any]] = [
        {"name": "north", "data": {"polyp": {"path": "north"}, "histology": phantom("histology", 4)}},
        {"name": "south", "data": {"polyp": {"path": "south"}}},
        {"name": "west", "data": {"polyp": {"path": "missing"}}},
    ]
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(tiny_table(institutions=sites)))
    status, text = casam("check", "--scenario", "mine.toml", "--data-root", "data")
    assert status == 1
    assert "north: histology" in text
    assert "west: polyp: data/missing: expected a folder" in text
    assert "polyp: leakage: north and south: expected different images in different parts" in text
    assert "2 faults" in text


def test_every_reader_is_guessed_and_checked(tmp_path: Path, casam: Casam) -> None:
    for number in range(4):
        test_dicom.put(tmp_path / "dicom", f"c{number}", PatientID=f"p{number}", BurnedInAnnotation="YES")
        test_nifti.put(
            tmp_path / "nifti", f"v{number}", voxels=RNG.integers(0, 99, test_nifti.SHAPE, np.int16)
        )
        pages = RNG.integers(0, 256, (4, 6, 8), dtype=np.uint8)
        test_tiff_stack.put(tmp_path / "tiff_stack", pages, stem=f"t{number}")
    test_med_datasets.tiny(tmp_path / "med_datasets")
    listed = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 10} for i in range(4)]
    test_coco.put(
        tmp_path / "coco", [test_coco.annotation(i, [test_coco.SQUARE], i) for i in range(4)], images=listed
    )
    images(tmp_path / "folder")
    (tmp_path / "folder" / "images" / "p0.png").rename(tmp_path / "folder" / "images" / "p0.tif")
    for reader in ("dicom", "nifti", "tiff_stack", "med_datasets", "coco", "folder"):
        assert understand(tmp_path / reader).reader == reader
    (tmp_path / "folder" / "images" / "p0.tif").rename(tmp_path / "folder" / "images" / "p0.png")
    status, text = casam("check", "nifti", "--key", "slice_axis=0", "--key", "window=[40, 400]")
    assert status == 0
    assert "gray 16-bit: 12" in text
    status, text = casam("check", "dicom")
    assert status == 1, "these series are copies of each other"
    assert "leakage" in text
    assert "PatientID is filled in 16 of 16 headers" in text
    assert "BurnedInAnnotation is YES in 16 of 16" in text
    assert "pixels were not searched" in text
    assert casam("check", "tiff_stack")[0] == 0
    status, text = casam("check", "med_datasets", "--key", "pseudo_masks=true")
    assert status == 1
    assert "with the same pixels" in text
    assert "leakage" in casam("check", "coco", "--key", "annotations=annotations.json")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "expected one of DIR, --scenario and --site"),
        (("set", "--scenario", "quickstart"), "expected one of DIR, --scenario and --site"),
        (("set", "--data-root", "."), "expected --data-root with --scenario or --site only"),
        (("--scenario", "quickstart", "--reader", "nifti"), "expected no reader option"),
        (("--scenario", "none"), "expected a .toml file"),
        (("set", "--reader", "phantom"), "reader 'phantom' needs the key 'phantom'"),
        (("set", "--reader", "video"), "reader: expected one of"),
        (("set", "--reader", "nifti", "--key", "window=[40]"), "window must be [centre, width]"),
        (("set", "--reader", "nifti", "--key", "window=[40, 0]"), "window must be [centre, width]"),
        (("set", "--reader", "nifti", "--key", "window=['a', 1]"), "should be a valid number"),
        (
            ("set", "--key", "window=[40, 400]"),
            "window belongs to nifti and itk and dicom, found reader 'folder'",
        ),
        (("set", "--reader", "coco", "--key", "slice_axis=1"), "slice_axis belongs to nifti"),
        (("set", "--reader", "dicom", "--group-pattern", "x"), "group_pattern belongs to"),
        (("set", "--key", "slice_axis=7"), "slice_axis: input should be 0, 1 or 2"),
    ],
)
def test_bad_input(tmp_path: Path, casam: Casam, arguments: tuple[str, ...], expected: str) -> None:
    images(tmp_path / "set")
    status, text = casam("check", *arguments)
    assert status == 2
    assert expected in text


def test_preview_stays_in_the_institutions_own_folder(tmp_path: Path, own_home: Path, casam: Casam) -> None:
    images(tmp_path / "set")
    before = {path for path in tmp_path.rglob("*") if own_home not in path.parents}
    status, text = casam("preview", "set", "--count", "3", "--institution", "north")
    assert status == 0
    folder = own_home / "institutions" / "north" / "previews" / "set"
    assert text.endswith(str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(file.name for file in folder.iterdir()) == ["001-p0.png", "002-p2.png", "003-p5.png"]
    assert {path for path in tmp_path.rglob("*") if own_home not in path.parents} == before
    drawn = np.asarray(Image.open(folder / "001-p0.png"))
    original = np.asarray(Image.open(tmp_path / "set" / "images" / "p0.png"))
    assert (drawn != original).any(axis=-1).sum() == 8, "the border of three by three pixels"
    np.testing.assert_array_equal(drawn[MASK == 0], original[MASK == 0])
    assert casam("preview", "set", "--institution", "north")[0] == 0, "a second call draws again"


def test_preview_elsewhere_only_on_demand_and_private(tmp_path: Path, casam: Casam) -> None:
    images(tmp_path / "set")
    assert casam("preview", "set", "--out", "pictures")[0] == 0
    assert stat.S_IMODE((tmp_path / "pictures").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    status, text = casam("preview", "set", "--out", "open")
    assert status == 2
    assert "mode 0700), found 0755" in text
    assert not list((tmp_path / "open").iterdir())
    (tmp_path / "file").touch()
    assert "expected a folder for pictures" in casam("preview", "set", "--out", "file")[1]
    assert "expected letters, digits" in casam("preview", "set", "--institution", "../x")[1]
    assert casam("preview", "nowhere")[0] == 2


def test_outlines_of_large_images_are_wider() -> None:
    labels = np.zeros((2000, 1600), np.int32)
    labels[400:900, 400:900] = 1
    image = np.zeros((2000, 1600, 3), np.uint8)
    drawn = overlay_of(LoadedSample(image, labels)).any(axis=-1)
    assert drawn[400:404, 600].all()
    assert not drawn[404, 600]
    assert not drawn[labels == 0].any()


def test_no_leak_without_shared_pixels() -> None:
    assert leaks_between({}) == []
    unsplit, split = Survey(), Survey()
    unsplit.hashes["same"].append(("", "a"))
    split.hashes["same"].append(("test", "b"))
    assert leaks_between({"north": unsplit, "south": split}) == [], "nothing is known without a split"
    unsplit.hashes["same"] = [("train", "a")]
    assert "a = b" in leaks_between({"north": unsplit, "south": split})[0]


def test_a_table_of_json_is_no_dataset(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text(json.dumps([1]))
    status, text = casam("check", "set")
    assert status == 1
    assert "fault at the top" in text
