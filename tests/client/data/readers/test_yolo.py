"""YOLO polygons: rasterised by hand, and every fault named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import Sample
from client.data.open import open_dataset
from client.data.readers.yolo import YoloDataset
from tests.client.making import RNG, keys

SQUARE = "0 0.2 0.3 0.6 0.3 0.6 0.8 0.2 0.8"  # of 10 x 10 pixels: columns 2..5, rows 3..7
SMALL = "1 0.3 0.4 0.5 0.4 0.5 0.6 0.3 0.6"


def put(root: Path, **texts: str | None) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for stem, text in texts.items():
        Image.fromarray(RNG.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(
            root / "images" / f"{stem}.png"
        )
        if text is not None:
            (root / "labels" / f"{stem}.txt").write_text(text)
    return root


def test_polygons_follow_pixel_corners_and_small_ones_stay_whole(tmp_path: Path) -> None:
    dataset = YoloDataset(put(tmp_path, a=f"{SQUARE}\n\n{SMALL}\n"))
    expected = np.zeros((10, 10), int)
    expected[3:8, 2:6] = 1
    expected[4:6, 3:5] = 2
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, expected)
    assert dataset.bits(dataset.samples[0]) == 8


def test_images_without_polygons_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = YoloDataset(put(tmp_path, a=SQUARE, b="", c=None))
    assert [sample.id for sample in dataset.samples] == ["a"]
    assert dataset.empty == 2


def test_a_scenario_names_it_and_groups_by_pattern(tmp_path: Path) -> None:
    put(tmp_path / "set", p1_a=SQUARE, p1_b=SQUARE, p2_a=SQUARE)
    spec = DataSpec(reader="yolo", path="set", group_pattern=r"^(p\d)")
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="north")
    assert [sample.group for sample in dataset.samples] == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 2: expected a polygon, found a box"),
        ("0 0.1 0.1 0.2 0.2 0.3", "found 5 numbers"),
        ("0 0.1 0.1 0.2", "found 3 numbers"),
        ("0 a b c d e f", "expected a class and numbers, found '0 a b c d e f'"),
        ("0 0.1 0.1 1.2 0.2 0.3 0.3", "shares of width and height from 0 to 1"),
        ("0 0.1 0.1 nan 0.2 0.3 0.3", "shares of width and height from 0 to 1"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    put(tmp_path, a=f"{SQUARE}\n{line}\n")
    with pytest.raises(DataError, match=words):
        YoloDataset(tmp_path)


def test_a_polygon_that_another_covers_is_a_fault(tmp_path: Path) -> None:
    dataset = YoloDataset(put(tmp_path, a=f"{SQUARE}\n{SQUARE}\n"))
    with pytest.raises(DataError, match=r"a\.txt: expected every polygon to own a pixel, found 1 polygon"):
        dataset.load(dataset.samples[0])


def test_folders_that_are_not_there_or_do_not_match_are_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with images/ and labels/"):
        YoloDataset(tmp_path / "absent")
    put(tmp_path, a="")
    with pytest.raises(DataError, match="at least one polygon, found none"):
        YoloDataset(tmp_path)
    (tmp_path / "labels" / "b.txt").write_text(SQUARE)
    with pytest.raises(DataError, match=r"1 file \(b\.txt\) without"):
        YoloDataset(tmp_path)


def test_folders_of_a_split_under_patterns_of_names(tmp_path: Path) -> None:
    """As ultralytics wants them; an image with an empty text file shows nothing."""
    for part in ("train", "val"):
        put(tmp_path / part, a=SQUARE, b="")
        for side in ("images", "labels"):
            (tmp_path / side).mkdir(exist_ok=True)
            (tmp_path / part / side).rename(tmp_path / side / part)
    spec = keys("yolo", image_files="images/{split}/{id}.*", mask_files="labels/{split}/{id}.*")
    dataset = YoloDataset(tmp_path, spec)
    assert dataset.samples == (Sample("train_a", part="train"), Sample("val_a", part="test"))
    assert dataset.empty == 2
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 1


def test_a_sample_of_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found the id 'z'"):
        YoloDataset(put(tmp_path, a=SQUARE)).load(Sample("z"))
