"""NRRD and MetaImage volumes: values, place in space, and every fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data import open_dataset
from client.data.readers.itk import ItkDataset
from client.data.readers.nifti import NiftiDataset
from scenarios.inspection.survey import Described
from tests.client.making import RNG, fault, keys

VOXELS_XYZ = RNG.integers(-500, 500, (8, 6, 4)).astype(np.int16)
MASK_XYZ = np.zeros((8, 6, 4), np.uint8)
MASK_XYZ[1:4, 2:5, 1] = 1
MASK_XYZ[5:7, 0:2, 3] = 2
ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")


def save(path: Path, values_XYZ: np.ndarray, **place: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(values_XYZ.transpose(2, 1, 0))
    image.SetSpacing(place.get("spacing", (0.5, 0.5, 3.0)))
    image.SetOrigin(place.get("origin", (10.0, -20.0, 5.0)))
    SimpleITK.WriteImage(image, str(path))


def put(root: Path, ending: str = ".nrrd", mask: np.ndarray = MASK_XYZ, **place: Any) -> Path:
    save(root / "images" / f"a{ending}", VOXELS_XYZ)
    save(root / "masks" / f"a{ending}", mask, **place)
    return root


@pytest.mark.parametrize("ending", ENDINGS)
def test_values_order_and_labels(tmp_path: Path, ending: str) -> None:
    spec = DataSpec(reader="itk", path=str(put(tmp_path, ending)), window=[0, 1000])
    dataset = open_dataset(spec, data_root=None, seed=0, institution="north")
    assert [(sample.id, sample.group) for sample in dataset.samples] == [("a-z001", "a"), ("a-z003", "a")]
    loaded = dataset.load(dataset.samples[0])
    expected_XY = np.rint((VOXELS_XYZ[:, :, 1] + 500.0) / 1000 * 255)
    np.testing.assert_array_equal(loaded.image_HW3[..., 0], expected_XY.T)
    np.testing.assert_array_equal(loaded.labels_HW, MASK_XYZ[:, :, 1].T)
    assert isinstance(dataset, Described)
    assert (dataset.empty, dataset.bits(dataset.samples[0])) == (2, 16)


def test_the_same_slices_as_from_nifti(tmp_path: Path) -> None:
    """SimpleITK wrote both; nibabel reads the other one."""
    put(tmp_path / "nrrd")
    put(tmp_path / "nifti", ".nii.gz")
    for axis in range(3):
        one, other = (
            ItkDataset(tmp_path / "nrrd", keys("itk", slice_axis=axis)),
            NiftiDataset(tmp_path / "nifti", keys("nifti", slice_axis=axis)),
        )
        assert one.samples == other.samples
        for sample in one.samples:
            a, b = one.load(sample), other.load(sample)
            np.testing.assert_array_equal(a.image_HW3, b.image_HW3)
            np.testing.assert_array_equal(a.labels_HW, b.labels_HW)


def test_a_mask_in_another_place_is_refused(tmp_path: Path) -> None:
    root = put(tmp_path, origin=(10.0, -20.0, 6.0))
    assert "lies 1.00 mm away at a corner; resample the mask" in fault(lambda: ItkDataset(root))
    root = put(tmp_path / "small", mask=MASK_XYZ[:7])
    assert "expected the shape of a.nrrd, 8 x 6 x 4, found 7 x 6 x 4" in fault(lambda: ItkDataset(root))


def test_several_values_per_voxel_are_refused(tmp_path: Path) -> None:
    put(tmp_path)
    image = SimpleITK.GetImageFromArray(np.zeros((4, 6, 8, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "images" / "a.nrrd"))
    assert "3 values per voxel; save each channel" in fault(lambda: ItkDataset(tmp_path))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path, ending) / "images" / f"a{ending}"
    path.write_bytes(path.read_bytes()[: 60 if ending in (".nhdr", ".mhd") else -40])
    raised = fault(lambda: (found := ItkDataset(tmp_path)).load(found.samples[0]))
    assert "expected a complete NRRD or MetaImage volume" in raised
    assert f"a{ending}" in raised


@pytest.mark.parametrize(("ending", "key"), [(".mhd", "ElementDataFile = "), (".nhdr", "data file: ")])
@pytest.mark.parametrize("other", ["../secret.raw", "/etc/passwd", "LIST"])
def test_pixels_of_another_folder_are_never_read(tmp_path: Path, ending: str, key: str, other: str) -> None:
    path = put(tmp_path, ending) / "images" / f"a{ending}"
    lines = [f"{key}{other}" if line.startswith(key) else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert f"expected the pixels in this file or beside it, found {other!r}" in fault(
        lambda: ItkDataset(tmp_path)
    )


def test_without_the_extra_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"extra 'itk', found that SimpleITK .*pip install 'casam\[itk\]'"):
        ItkDataset(tmp_path)
