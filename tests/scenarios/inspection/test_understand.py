"""`casam data check`, `casam init` and `casam site init` read a folder as it is, or ask."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from casam_core.config.site_file import read_site_file
from casam_core.errors import DataError
from scenarios.inspection.understand import understand
from tests.casam_command import Casam
from tests.client.data.readers import test_coco
from tests.client.data.readers.dicom.test_dicom_structures import LIVER, seg, series

RNG = np.random.default_rng(0)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, *patterns: str, count: int = 12) -> Path:
    """Images and masks of a square under these names; {i} is a number."""
    mask_HW = np.zeros((32, 32), np.uint8)
    mask_HW[8:16, 8:16] = 1
    for i in range(count):
        save(folder / patterns[0].format(i=i, p=i // 2), RNG.integers(0, 255, (32, 32, 3), np.uint8))
        for pattern in patterns[1:]:
            save(folder / pattern.format(i=i, p=i // 2), mask_HW)
    return folder


def test_check_shows_what_it_understood_and_the_line_to_change(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path / "set", "p{p}/{i}.png", "p{p}/{i}_mask.png")
    ended = casam("data", "check", "set")
    assert ended.status == 0, ended.out + ended.err
    for said in (
        "{patient}/{id}.*",
        "{patient}/{id}_mask.*",
        "each value above 0 is one object (the default",
    ):
        assert said in ended.out
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in ended.out.splitlines() if "│" in line]
    assert ["groups", "6"] in rows
    line = next(line for line in ended.out.splitlines() if line.startswith("to change"))
    table = tomllib.loads(f"data = {line.partition(': ')[2]}")["data"]
    assert table == {
        "reader": "folder",
        "path": str(tmp_path / "set"),
        "image_files": "{patient}/{id}.*",
        "mask_files": "{patient}/{id}_mask.*",
    }


def test_slices_in_folders_of_patients_are_no_dicom(tmp_path: Path) -> None:
    fill(tmp_path, "images/patient_{p:03}/slice{i}.png", "masks/patient_{p:03}/slice{i}.png")
    assert understand(tmp_path).reader == "folder"


def test_colour_masks_are_seen_in_the_first_mask(tmp_path: Path, casam: Casam) -> None:
    mask_HW3 = np.zeros((32, 32, 3), np.uint8)
    mask_HW3[4:9, 4:9], mask_HW3[20:25, 20:25] = (255, 0, 0), (0, 255, 0)
    for i in range(12):
        save(tmp_path / "set" / "images" / f"{i}.png", RNG.integers(0, 255, (32, 32, 3), np.uint8))
        save(tmp_path / "set" / "masks" / f"{i}.png", mask_HW3)
    ended = casam("data", "check", "set")
    assert ended.status == 0, ended.out
    assert "each connected part of a colour is one object; black is background" in ended.out
    assert "2 to 2, median 2" in ended.out


def test_several_readings_are_an_error_without_a_terminal_and_a_question_on_one(tmp_path: Path) -> None:
    fill(tmp_path, "images/{i}.png", "masks/{i}.png", "labels/{i}.png")
    with pytest.raises(DataError, match="expected one way to read these files, found 2: reader"):
        understand(tmp_path)
    asked: list[str] = []

    def second(lines: object) -> int:
        asked.extend(lines)  # type: ignore[arg-type]
        return 1

    assert understand(tmp_path, second).keys == {}
    assert len(asked) == 2


def test_what_no_reader_reads_is_named_with_safe_advice(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.czi").write_bytes(b"")
    (tmp_path / "images").rmdir()
    with pytest.raises(DataError, match=r"found 1 \.czi files, which no reader reads; convert copies"):
        understand(tmp_path)


def test_what_fits_no_pattern_is_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "{i}_image.png", "{i}_mask.png")
    save(tmp_path / "extra.png", RNG.integers(0, 255, (8, 8, 3), np.uint8))
    (tmp_path / "README.txt").write_text("no image")
    assert understand(tmp_path).notes == ("not read, because no pattern fits: 1 file (extra.png)",)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path / "store", "i/{i}.png", "m/{i}.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "Images").symlink_to("../store/i")
    (tmp_path / "set" / "Labels").symlink_to("../store/m")
    (tmp_path / "store" / "i" / "again").symlink_to("../../set")
    (tmp_path / "store" / "m" / "top").symlink_to("/")
    assert understand(tmp_path / "set").keys == {
        "image_files": "Images/{id}.*",
        "mask_files": "Labels/{id}.*",
    }
    assert casam("data", "check", "set").status == 0


def test_init_writes_the_patterns_and_the_run_accepts_them(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path / "set", "{i}.png", "{i}_mask.png")
    assert casam("init", "mine.toml", "--site", "lab:cells=set").status == 0
    assert 'image_files = "{id}.*", mask_files = "{id}_mask.*"' in (tmp_path / "mine.toml").read_text()
    assert casam("data", "check", "--scenario", "mine.toml", "--data-root", ".").status == 0


def test_a_site_file_holds_the_patterns(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path / "data" / "cells", "Images/{i}.png", "Labels/{i}.png")
    fill(tmp_path / "data" / "glands", "images/{i}.png", "masks/{i}_mask.png")
    assert casam("site", "init", "data", "--out", "site.toml").status == 0
    tasks = read_site_file(tmp_path / "site.toml").tasks
    assert tasks["cells"].patterns == ("Images/{id}.*", "Labels/{id}.*")
    assert tasks["glands"].patterns == ("images/{id}.*", "masks/{id}_mask.*")


def test_coco_as_it_is_published(tmp_path: Path, casam: Casam) -> None:
    listed = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 10} for i in range(4)]
    test_coco.put(tmp_path, [test_coco.annotation(i, [test_coco.SQUARE], i) for i in range(4)], images=listed)
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "annotations.json").rename(tmp_path / "set" / "annotations" / "instances_train2017.json")
    (tmp_path / "images").rename(tmp_path / "set" / "train2017")
    assert understand(tmp_path / "set").reader == "coco"
    assert "4, 4 readable" in casam("data", "check", "set").out


def test_a_list_names_masks_split_and_patients(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path / "set", "scans/{i}.png", "truth/m{i}.png")
    lines = [f"scans/{i}.png,truth/m{i}.png,{'test' if i > 7 else 'train'},p{i // 2}" for i in range(12)]
    (tmp_path / "set" / "split.csv").write_text("\n".join(["image,mask,split,patient", *lines]))
    ended = casam("data", "check", "set")
    assert ended.status == 0, ended.out
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in ended.out.splitlines() if "│" in line]
    assert ["image files", "listed in split.csv"] in rows
    assert ["groups", "6"] in rows
    assert next(found for name, found in rows if name == "train / val / test").endswith("/ 4")


def test_a_table_that_is_no_list_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "images/{i}.png", "masks/{i}.png")
    (tmp_path / "notes.csv").write_text("image,remark\n")
    assert understand(tmp_path).notes == ("not read: notes.csv (a list needs the columns image and mask)",)


def checked(casam: Casam, folder: Path, *options: str, status: int = 0) -> dict[str, str]:
    """The rows that `casam data check` prints, with its notes."""
    ended = casam("data", "check", str(folder), *options)
    assert ended.status == status, ended.out + ended.err
    cells = (
        [cell.strip() for cell in line.split("│")[1:3]] for line in ended.out.splitlines() if "│" in line
    )
    notes = [line for line in ended.out.splitlines() if line.startswith(("note", "FAULT"))]
    return {**dict(cells), "notes": "\n".join(notes), "line": ended.out}


def squares(
    folder: Path, *names: str, places: tuple[int, ...] = (8,), left: int = 4, value: int = 255
) -> None:
    """Masks with a square at each of these heights."""
    for name in names:
        mask_HW = np.zeros((32, 32), np.uint8)
        for place in places:
            mask_HW[place : place + 4, left : left + 5] = value
        save(folder / name, mask_HW)


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        save(folder / name, RNG.integers(0, 255, (32, 32, 3), np.uint8))


def test_a_folder_for_each_class(tmp_path: Path, casam: Casam) -> None:
    pictures(tmp_path, *[f"images/{i}.png" for i in range(12)])
    squares(tmp_path, *[f"masks/cup/{i}.png" for i in range(12)])
    squares(tmp_path, *[f"masks/disc/{i}.png" for i in range(8)], places=(20,))
    squares(tmp_path, *[f"masks/disc/{i}.png" for i in (8, 9)], value=0)  # the class is not in these images
    found = checked(casam, tmp_path)
    assert found["mask files"] == "masks/{class}/{id}.*"
    assert found["labels"].startswith("each mask is a class, and each class of an image is one object")
    assert found["instances per image"] == "1 to 2, median 2"
    assert "2 names (cup, disc)" in found["notes"]


def test_several_regions_of_one_class_are_asked_about(tmp_path: Path, casam: Casam) -> None:
    pictures(tmp_path, *[f"images/{i}.png" for i in range(12)])
    for left, kind in ((2, "cup"), (20, "disc")):
        squares(tmp_path, *[f"masks/{kind}/{i}.png" for i in range(12)], places=(1, 20), left=left)
    found = checked(casam, tmp_path, status=1)
    assert 'write labels = "classes" if each region is an object' in found["notes"]
    assert checked(casam, tmp_path, "--labels", "classes")["instances per image"] == "4 to 4, median 4"


def test_pascal_voc_as_it_is_published(tmp_path: Path, casam: Casam) -> None:
    """Most images have no mask; the lists name those that have one. 255 is the border of an object."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    pictures(root, *[f"JPEGImages/2007_{i:06}.jpg" for i in range(30)])
    border_HW = np.zeros((32, 32), np.uint8)
    border_HW[3:14, 3:14], border_HW[4:13, 4:13], border_HW[20:24, 20:24] = 255, 1, 2
    for i in range(12):
        for kind in ("Object", "Class"):
            save(root / f"Segmentation{kind}" / f"2007_{i:06}.png", border_HW)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"2007_{i:06}" for i in range(8)) + "\n")
    (lists / "val.txt").write_text("\n".join(f"2007_{i:06}" for i in range(8, 12)) + "\n")
    (lists / "trainval.txt").write_text("not read")
    found = checked(casam, tmp_path)
    assert found["mask files"] == "VOCdevkit/VOC2012/SegmentationObject/{id}.*"
    assert found["images"] == "12, 12 readable"
    assert found["train / val / test"].endswith("/ 4")
    assert found["objects"] == "mask values from 1 to 254"
    assert found["instances per image"] == "2 to 2, median 2"
    assert "not read, because no list names them: 30 files" in found["notes"]  # 18 images, 12 class masks


def test_numbers_of_cityscapes(tmp_path: Path, casam: Casam) -> None:
    ids_HW = np.zeros((32, 32), np.uint16)
    ids_HW[:, :] = 7  # road
    ids_HW[2:6, 2:6], ids_HW[10:14, 2:6] = 26000, 26001
    for part, cities in (("train", ("aachen", "bochum")), ("val", ("ulm", "jena"))):
        for city in cities:
            for i in range(3):
                stem = f"{city}_{i:06}_000019"
                pictures(tmp_path, f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png")
                for kind in ("instanceIds", "labelIds"):
                    save(tmp_path / f"gtFine/{part}/{city}/{stem}_gtFine_{kind}.png", ids_HW)
    found = checked(casam, tmp_path)
    assert found["mask files"].endswith("_gtFine_instanceIds.*")
    assert found["instances per image"] == "2 to 2, median 2"
    assert found["train / val / test"].endswith("/ 6")


def test_a_list_of_monai_names_masks_and_parts(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path, "a/{i}.png", "b/m{i}.png")
    entries = [{"image": f"./a/{i}.png", "label": f"b/m{i}.png", "fold": 0} for i in range(12)]
    content = {"training": entries[:8], "validation": entries[8:], "test": ["a/unlabelled.png"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = checked(casam, tmp_path)
    assert found["image files"] == "listed in dataset.json"
    assert found["train / val / test"].endswith("/ 4")


def test_a_list_with_semicolons(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path, "a/{i}.png", "b/m{i}.png")
    lines = [f"a/{i}.png;b/m{i}.png;p{i // 2}" for i in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["Image;Mask;Patient", *lines]))
    assert checked(casam, tmp_path)["groups"] == "6"


def test_channels_of_an_ome_tiff_are_told(tmp_path: Path, casam: Casam) -> None:
    for i in range(12):
        for part, values, axes in (
            ("images", RNG.integers(0, 255, (2, 3, 32, 32), np.uint8), "CZYX"),
            ("masks", np.pad(np.ones((3, 4, 4), np.uint8), ((0, 0), (4, 24), (4, 24))), "ZYX"),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / part / f"{i}.ome.tif", values, ome=True, metadata={"axes": axes})
    found = checked(casam, tmp_path)
    assert found["reader"] == "tiff_stack"
    assert "images have 2 channels, and channel 0 is read; for another: channel = 1" in found["notes"]
    assert "channel = 1" in checked(casam, tmp_path, "--key", "channel=1")["line"]


def test_dicom_without_endings_is_known_by_its_first_bytes(tmp_path: Path, casam: Casam) -> None:
    for patient in range(4):
        series(tmp_path / f"p{patient}" / "CT", f"1.2.{patient}", patient=f"MRN-{patient}")
        seg(tmp_path / f"p{patient}" / "SEG", f"1.2.{patient}", {"liver": LIVER})
    for file in sorted(tmp_path.rglob("*.dcm")):
        file.rename(file.with_name(file.stem.replace("-", "")))
    found = checked(casam, tmp_path, status=1)  # the four series have the same pixels
    assert found["reader"] == "dicom"
    assert found["groups"] == "4"
    assert "structures: liver" in found["notes"]


def test_braces_in_a_folder_are_doubled_in_the_patterns(tmp_path: Path, casam: Casam) -> None:
    fill(tmp_path, "{{raw}}/images/{i}.png", "{{raw}}/masks/{i}.png")
    assert checked(casam, tmp_path)["image files"] == "{{raw}}/images/{id}.*"


def test_two_datasets_of_nnunet_are_named(tmp_path: Path) -> None:
    for name in ("Dataset001_A", "Dataset002_B"):
        fill(tmp_path / name, "imagesTr/{i}_0000.png", "labelsTr/{i}.png")
        (tmp_path / name / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="expected one dataset, found 2 nnU-Net datasets"):
        understand(tmp_path)


def test_folders_that_may_be_tasks_are_told(tmp_path: Path) -> None:
    for task in ("glands", "nuclei"):
        fill(tmp_path, f"{task}/images/{task}{{i}}.png", f"{task}/masks/{task}{{i}}.png")
    told = "2 folders (glands, nuclei) are one dataset; if they are different tasks, name one of them"
    assert told in understand(tmp_path).notes
    fill(tmp_path, "cells2018/images/{i}.png", "cells2018/masks/{i}.png")  # one digit: all count as patients
    told = "3 folders (cells2018, glands, nuclei) are patients of one dataset; if they are different tasks"
    assert any(note.startswith(told) for note in understand(tmp_path).notes)


def test_masks_with_the_background_as_value_are_doubted(tmp_path: Path, casam: Casam) -> None:
    pictures(tmp_path, *[f"images/{i}.png" for i in range(12)])
    mask_HW = np.full((32, 32), 255, np.uint8)
    mask_HW[8:16, 8:16] = 0
    for i in range(12):
        save(tmp_path / "masks" / f"{i}.png", mask_HW)
    assert "in 12 of 12 masks the only value covers all corners" in checked(casam, tmp_path)["notes"]


def test_a_table_without_the_columns_is_named_where_nothing_else_fits(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "split.csv").write_text("file,part\n")
    with pytest.raises(DataError, match=r"1 table \(split.csv\) without the columns image and mask"):
        understand(tmp_path)


def test_masks_in_a_format_that_is_not_read_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, *[f"training/images/{i}_training.tif" for i in range(4)])
    (tmp_path / "training" / "1st_manual").mkdir()
    for i in range(4):
        (tmp_path / "training" / "1st_manual" / f"{i}_manual1.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"no folder or name of masks \(4 \.gif files are not read\)"):
        understand(tmp_path)


def test_files_named_as_masks_are_not_said_to_be_missing(tmp_path: Path) -> None:
    # Two people's masks: which one counts is not ours to say.
    pictures(tmp_path, *[f"case{i}/{name}.png" for i in range(4) for name in ("img", "gt_A", "gt_B")])
    with pytest.raises(DataError, match=r"expected images and masks with matching names, found 12 files"):
        understand(tmp_path)
