"""`casam data check`, `casam init` and `casam site init` read a folder as it is, or ask."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from casam_core.config.site_file import read_site_file
from casam_core.errors import DataError
from scenarios.inspection.understand import understand
from tests.casam_command import Casam
from tests.client.data import test_coco

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
    (tmp_path / "scans" / "a.nrrd").write_bytes(b"")
    (tmp_path / "images").rmdir()
    with pytest.raises(DataError, match=r"found 1 \.nrrd files, which no reader reads; convert copies"):
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
