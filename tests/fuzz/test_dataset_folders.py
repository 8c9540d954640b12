"""Folders of images: whatever happened to a file, every reader returns samples or raises DataError."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.open import open_dataset
from client.data.readers.coco import CocoDataset
from client.data.readers.dicom.dicom_dataset import DicomDataset
from client.data.readers.itk import ItkDataset
from client.data.readers.med_datasets import MedDataset
from client.data.readers.nifti import NiftiDataset
from client.data.readers.tiff_stack import TiffStackDataset
from tests.client.data.readers import (
    test_coco,
    test_itk,
    test_med_datasets,
    test_nifti,
    test_tiff_stack,
    test_yolo,
)
from tests.client.data.readers.dicom import test_dicom, test_dicom_structures
from tests.fuzz.damage import contents, damaged, examples


def folder(root: Path) -> Path:
    """Three images with labels, as the reader `folder` wants them."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(3):
        labels_HW = np.zeros((24, 32), np.uint8)
        labels_HW[4:12, 4:20] = 1
        image_HW3 = np.full((24, 32, 3), 40 * number, np.uint8)
        Image.fromarray(image_HW3).save(root / "images" / f"{number}.png")
        Image.fromarray(labels_HW).save(root / "masks" / f"{number}.png")
    return root


def opened(reader: Any) -> Callable[[Path], Any]:
    """Through the scenario's own way in."""
    return lambda root: open_dataset(
        DataSpec(reader=reader, path=str(root)), data_root=None, seed=0, institution="north"
    )


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "folder": (folder, opened("folder")),
    "nifti": (lambda root: test_nifti.put(root, ending=".nii"), NiftiDataset),
    "tiff": (test_tiff_stack.put, TiffStackDataset),
    "dicom": (test_dicom.put, DicomDataset),
    "itk": (lambda root: test_itk.put(root, ending=".mha"), ItkDataset),
    "seg": (test_dicom_structures.with_seg, DicomDataset),
    "rtstruct": (test_dicom_structures.with_rtstruct, DicomDataset),
    "med": (test_med_datasets.tiny, MedDataset),
    "yolo": (lambda root: test_yolo.put(root, a=test_yolo.SQUARE), opened("yolo")),
    "coco": (
        lambda root: test_coco.put(root, [test_coco.annotation(1, [test_coco.SQUARE])]),
        CocoDataset,
    ),
}


@lru_cache
def whole(reader: str) -> dict[str, bytes]:
    """The files of a sound folder, the same for every example: some formats number themselves at random."""
    with tempfile.TemporaryDirectory() as name:
        READERS[reader][0](Path(name) / "data")
        return contents(Path(name) / "data")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@examples(6, 250)
def test_a_damaged_or_missing_file(reader: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        for file, content in whole(reader).items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)
        file = data.draw(st.sampled_from(sorted(whole(reader))))
        if data.draw(st.integers(0, 9)) == 0:
            (root / file).unlink()
        else:
            (root / file).write_bytes(data.draw(damaged(whole(reader)[file])))
        before = contents(root)
        try:
            dataset = READERS[reader][1](root)
            for sample in dataset.samples:
                assert dataset.load(sample).labels_HW.max() >= 1
        except DataError as error:
            one_line(error)
        assert contents(root) == before


def one_line(error: DataError) -> None:
    """A person reads one line."""
    assert str(error)
    assert "\n" not in str(error)
