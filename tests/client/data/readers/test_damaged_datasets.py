"""Whatever a flipped or cut byte does, every reader returns samples or raises DataError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.errors import DataError
from client.data.readers.coco import CocoDataset
from client.data.readers.dicom.dicom_dataset import DicomDataset
from client.data.readers.med_datasets import MedDataset
from client.data.readers.nifti import NiftiDataset
from client.data.readers.tiff_stack import TiffStackDataset
from tests.client.data.readers import test_coco, test_med_datasets, test_nifti, test_tiff_stack
from tests.client.data.readers.dicom import test_dicom
from tests.client.making import keys


def coco(root: Path) -> Path:
    return test_coco.put(root, [test_coco.annotation(1, [test_coco.SQUARE])])


def packed_nifti(root: Path) -> Path:
    return test_nifti.put(root, ending=".nii.gz")


def plain_nifti(root: Path) -> Path:
    return test_nifti.put(root, ending=".nii")


@pytest.mark.parametrize(
    ("put", "open_", "pattern"),
    [
        (packed_nifti, NiftiDataset, "*/*.gz"),
        (plain_nifti, NiftiDataset, "*/*.nii"),
        (test_tiff_stack.put, TiffStackDataset, "*/*.tif"),
        (test_dicom.put, DicomDataset, "images/*/*.dcm"),
        (test_med_datasets.tiny, MedDataset, "label/*.npz"),
        (
            lambda root: test_med_datasets.tiny(root),
            lambda root: MedDataset(root, keys("med_datasets", pseudo_masks=True)),
            "*/*.npy",
        ),
        (coco, CocoDataset, "*.json"),
    ],
    ids=["nifti-gz", "nifti", "tiff", "dicom", "npz", "npy", "coco"],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(
    tmp_path: Path, put: Callable[[Path], Path], open_: Callable[[Path], Any], pattern: str
) -> None:
    rng = np.random.default_rng(1)
    files = sorted(put(tmp_path).glob(pattern))
    texts: list[str] = []
    for turn in range(40):
        file = files[turn % len(files)]
        whole = file.read_bytes()
        broken = bytearray(whole)
        # Headers decide most; half of the damage goes there.
        reach = len(broken) if turn % 2 else min(len(broken), 400)
        for place in rng.integers(0, reach, int(rng.integers(1, 5))):
            broken[place] = rng.integers(0, 256)
        cut = len(broken) if turn % 3 else int(rng.integers(0, len(broken)))
        file.write_bytes(broken[:cut])
        try:
            dataset = open_(tmp_path)
            for sample in dataset.samples:
                loaded = dataset.load(sample)
                dataset.bits(sample)
                assert loaded.image_HW3.dtype == np.uint8
                assert loaded.labels_HW.max() >= 1
        except DataError as error:
            texts.append(str(error))
        file.write_bytes(whole)
    assert texts
    assert not any("\n" in text for text in texts)
