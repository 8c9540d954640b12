"""Datasets whose files have other names than images/x.png and masks/x.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import Dataset
from client.data.open import open_dataset
from client.data.task_data import division_of

IMAGE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def square(row: int, value: int = 1) -> NDArray[np.uint8]:
    mask_HW = np.zeros((8, 6), np.uint8)
    mask_HW[row : row + 2, 1:3] = value
    return mask_HW


def put(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def opened(path: Path, image_files: str, mask_files: str, **keys: object) -> Dataset:
    spec = DataSpec(path=str(path), image_files=image_files, mask_files=mask_files, **keys)  # type: ignore[arg-type]
    return open_dataset(spec, data_root=None, seed=0, institution="here")


def test_masks_with_a_suffix_in_one_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"{name}.png", IMAGE)
        put(tmp_path / f"{name}_mask.png", square(2))
    dataset = opened(tmp_path, "{id}.*", "{id}_mask.*")
    assert [(sample.id, sample.group) for sample in dataset.samples] == [("a", None), ("b", None)]
    loaded = dataset.load(dataset.samples[0])
    np.testing.assert_array_equal(loaded.image_HW3, IMAGE)
    np.testing.assert_array_equal(loaded.labels_HW, square(2))


def test_a_folder_is_the_patient_and_another_the_part_of_the_split(tmp_path: Path) -> None:
    for part in ("Train", "test"):
        for patient in ("p1", "p2"):
            put(tmp_path / part / f"{part}{patient}" / "1.png", IMAGE)
            put(tmp_path / part / f"{part}{patient}" / "1_seg.png", square(1))
    dataset = opened(tmp_path, "{split}/{patient}/{id}.*", "{split}/{patient}/{id}_seg.*")
    assert [(sample.id, sample.group, sample.part) for sample in dataset.samples] == [
        ("Train_Trainp1_1", "Trainp1", "train"),
        ("Train_Trainp2_1", "Trainp2", "train"),
        ("test_testp1_1", "testp1", "test"),
        ("test_testp2_1", "testp2", "test"),
    ]


def test_several_masks_of_an_image_are_instances(tmp_path: Path) -> None:
    put(tmp_path / "x.png", IMAGE)
    for number, row in enumerate((0, 3, 6)):
        put(tmp_path / f"x_mask_{number}.png", square(row, value=255))
    dataset = opened(tmp_path, "{id}.*", "{id}_mask{n}.*")
    labels_HW = dataset.load(dataset.samples[0]).labels_HW
    np.testing.assert_array_equal(labels_HW, square(0) + 2 * square(3) + 3 * square(6))


def test_a_name_with_a_number_is_not_the_number_of_a_mask(tmp_path: Path) -> None:
    for name in ("case_1", "case_2"):
        put(tmp_path / "images" / f"{name}.png", IMAGE)
        put(tmp_path / "masks" / f"{name}_1.png", square(1))
        put(tmp_path / "masks" / f"{name}_2.png", square(4))
    dataset = opened(tmp_path, "images/{id}.*", "masks/{id}{n}.*")
    assert [int(dataset.load(sample).labels_HW.max()) for sample in dataset.samples] == [2, 2]


def test_colours_are_classes_and_their_parts_objects(tmp_path: Path) -> None:
    mask_HW3 = np.zeros((8, 6, 3), np.uint8)
    mask_HW3[0:2, 0:2] = mask_HW3[5:7, 0:2] = (255, 0, 0)
    mask_HW3[0:2, 4:6] = (0, 0, 255)
    put(tmp_path / "images" / "a.png", IMAGE)
    put(tmp_path / "masks" / "a.png", mask_HW3)
    dataset = opened(tmp_path, "images/{id}.*", "masks/{id}.*", labels="colours")
    labels_HW = dataset.load(dataset.samples[0]).labels_HW
    assert [int(labels_HW[at]) for at in ((0, 4), (0, 0), (5, 0), (3, 3))] == [1, 2, 3, 0]


def test_every_missing_partner_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png", IMAGE)
    put(tmp_path / "b_mask.png", square(1))
    with pytest.raises(DataError, match=r"found 1 image \(a\.png\) without.*") as fault:
        opened(tmp_path, "{id}.*", "{id}_mask.*")
    assert "and 1 more fault" in str(fault.value) or "b_mask.png" in str(fault.value)


def test_two_masks_need_the_mark_of_a_number(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", IMAGE)
    put(tmp_path / "masks" / "a.png", square(1))
    put(tmp_path / "masks" / "a.tif", square(1))
    with pytest.raises(DataError, match=r"expected one mask for images/a\.png, found 2 files .* write \{n\}"):
        opened(tmp_path, "images/{id}.*", "masks/{id}.*")


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", IMAGE)
    put(tmp_path / "images" / "a.tif", IMAGE)
    put(tmp_path / "masks" / "a.png", square(1))
    with pytest.raises(DataError, match="expected one image for each id"):
        opened(tmp_path, "images/{id}.*", "masks/{id}.*")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("*.png", "*_mask.png"), "expected {id} or {patient} in both"),
        (("{id}.*", "{id}_{kind}.*"), "expected the marks"),
        (("{id}_none.*", "{id}_mask.*"), "expected files like"),
    ],
)
def test_patterns_that_say_nothing_are_refused(tmp_path: Path, patterns: tuple[str, str], words: str) -> None:
    put(tmp_path / "a.png", IMAGE)
    with pytest.raises(DataError) as fault:
        opened(tmp_path, *patterns)
    assert words in str(fault.value)


def test_a_pattern_is_no_regular_expression(tmp_path: Path) -> None:
    put(tmp_path / "a (1)+.png", IMAGE)
    put(tmp_path / "a (1)+_mask.png", square(1))
    assert [sample.id for sample in opened(tmp_path, "{id}.*", "{id}_mask.*").samples] == ["a (1)+"]


def test_files_outside_the_folder_are_out_of_reach(tmp_path: Path) -> None:
    put(tmp_path / "secret" / "a.png", IMAGE)
    put(tmp_path / "data" / "b.png", IMAGE)
    with pytest.raises(DataError, match="expected files like"):
        opened(tmp_path / "data", "../secret/{id}.*", "../secret/{id}.*")


def test_one_pattern_alone_is_refused() -> None:
    with pytest.raises(ValidationError, match="image_files and mask_files together"):
        DataSpec(path="x", image_files="{id}.*")
    with pytest.raises(ValidationError, match="belongs to folder and nifti and itk and tiff_stack"):
        DataSpec(path="x", reader="coco", image_files="{id}.*", mask_files="{id}_m.*")


def test_patterns_belong_to_the_division_and_their_absence_keeps_earlier_ones() -> None:
    plain = DataSpec(path="x")
    other = DataSpec(path="x", image_files="{id}.*", mask_files="{id}_m.*")
    assert division_of(plain, b"key") != division_of(other, b"key")
    assert division_of(plain, b"key") == "1eb51d0b7e241424974e9cbb0ae304369377cd458216784f5f233e0b09e7a3e0"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["image,remark", "a.png,b"], "expected lines with the columns image and mask"),
        (["image,mask"], "expected lines with the columns image and mask"),
        (["image,mask", "../a.png,m.png"], "expected a path that stays inside"),
        (["image,mask", "a.png,gone.png"], "gone.png, found no such file"),
        (["image,mask,split", "a.png,m.png,later"], "line 2: expected a split of train"),
        (["image,mask,patient", "a.png,m.png,p", "a.png,m.png,q"], "line 3: expected one split and patient"),
        (["image,mask,split", "a.png,m.png,train", "./a.png,m.png,test"], "line 3: expected one split"),
    ],
)
def test_a_list_is_read_strictly(tmp_path: Path, lines: list[str], words: str) -> None:
    put(tmp_path / "a.png", IMAGE)
    put(tmp_path / "m.png", square(1))
    (tmp_path / "list.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as fault:
        open_dataset(
            DataSpec(path=str(tmp_path), list_file="list.csv"), data_root=None, seed=0, institution="here"
        )
    assert words in str(fault.value)


def test_several_lines_of_an_image_are_its_instances(tmp_path: Path) -> None:
    put(tmp_path / "a.png", IMAGE)
    put(tmp_path / "m.png", square(1))
    put(tmp_path / "n.png", square(5))
    (tmp_path / "list.csv").write_text("image,mask,patient\na.png,m.png,p\na.png,n.png,p\n")
    spec = DataSpec(path=str(tmp_path), list_file="list.csv")
    dataset = open_dataset(spec, data_root=None, seed=0, institution="here")
    (sample,) = dataset.samples
    assert (sample.id, sample.group) == ("a.png", "p")
    np.testing.assert_array_equal(dataset.load(sample).labels_HW, square(1) + 2 * square(5))


@pytest.mark.parametrize("order", [("patient_id", "case"), ("case", "patient_id")])
def test_the_patient_goes_before_the_case_and_the_mask_before_the_label(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    """In any order of the columns; otherwise one patient's studies could be trained and tested on."""
    put(tmp_path / "m.png", square(1))
    lines = [",".join(["image", "mask", "label", *order])]
    for i in range(4):
        put(tmp_path / f"{i}.png", IMAGE)
        cells = {"patient_id": f"p{i // 2}", "case": f"study{i}"}
        lines.append(",".join([f"{i}.png", "m.png", "benign", *(cells[name] for name in order)]))
    (tmp_path / "list.csv").write_text("\n".join(lines))
    spec = DataSpec(path=str(tmp_path), list_file="list.csv")
    dataset = open_dataset(spec, data_root=None, seed=0, institution="here")
    assert [sample.group for sample in dataset.samples] == ["p0", "p0", "p1", "p1"]
