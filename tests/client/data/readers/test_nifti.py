"""NIfTI volumes: slices, windows, groups, and every fault."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from casam_core.config.data_spec import DataSpec, LimitSpec, SplitSpec
from client.data import open_dataset
from client.data.dataset import Sample
from client.data.readers import volumes
from client.data.readers.nifti import NiftiDataset
from client.data.readers.volumes import VolumeDataset
from client.data.splits import simulated_key, split_samples
from scenarios.inspection.survey import Described
from tests.client.making import RNG, fault, keys

SHAPE = (5, 6, 4)
VOXELS = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
MASK = np.zeros(SHAPE, np.uint8)
MASK[1:3, 2:5, 1:3] = 1
MASK[4, 0, 2] = 9


def put(
    root: Path, stem: str = "a", voxels: np.ndarray = VOXELS, mask: np.ndarray = MASK, **more: object
) -> Path:
    """One pair; more: affine of the mask, endings."""
    ending = str(more.get("ending", ".nii.gz"))
    for folder, values, affine in (
        ("images", voxels, np.eye(4)),
        ("masks", mask, more.get("affine", np.eye(4))),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), root / folder / f"{stem}{ending}")
    return root


def ids(dataset: VolumeDataset) -> list[str]:
    return [sample.id for sample in dataset.samples]


def test_labelled_slices_only_and_the_window(tmp_path: Path) -> None:
    dataset = NiftiDataset(put(tmp_path), keys("nifti", window=[40, 400]))
    assert isinstance(dataset, Described)
    assert ids(dataset) == ["a-z001", "a-z002"]
    assert dataset.empty == 2
    assert dataset.bits(dataset.samples[0]) == 16
    loaded = dataset.load(dataset.samples[1])
    expected = np.rint(np.clip((VOXELS[:, :, 2].T + 160.0) / 400, 0, 1) * 255)
    assert np.abs(loaded.image_HW3[..., 0].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(loaded.image_HW3[..., 0], loaded.image_HW3[..., 2])
    np.testing.assert_array_equal(loaded.labels_HW, np.where(MASK[:, :, 2].T == 9, 2, MASK[:, :, 2].T))
    assert loaded.labels_HW.dtype == np.int32


@pytest.mark.parametrize(("axis", "slices", "size"), [(0, [1, 2, 4], (4, 6)), (1, [0, 2, 3, 4], (4, 5))])
def test_slice_axis(tmp_path: Path, axis: int, slices: list[int], size: tuple[int, int]) -> None:
    dataset = NiftiDataset(put(tmp_path), keys("nifti", slice_axis=axis))
    assert ids(dataset) == [f"a-z{index:03d}" for index in slices]
    for sample, index in zip(dataset.samples, slices, strict=True):
        loaded = dataset.load(sample)
        assert loaded.labels_HW.shape == size
        np.testing.assert_array_equal(loaded.labels_HW > 0, np.take(MASK, index, axis).T > 0)


def test_without_a_window_the_volume_has_one_scale(tmp_path: Path) -> None:
    voxels = np.linspace(0, 1000, 20 * 20 * 4).reshape(20, 20, 4).astype(np.float32)
    voxels[0, 0, 0] = 1e6  # one hot voxel must not darken the rest
    dataset = NiftiDataset(put(tmp_path, voxels=voxels, mask=np.ones(voxels.shape, np.uint8)))
    shown = np.stack([dataset.load(sample).image_HW3[..., 0].T for sample in dataset.samples], -1)
    assert np.median(shown) == pytest.approx(127, abs=3)
    assert np.diff(shown[10, 10].astype(int)).max() <= 1, "slices share their scale"
    flat = NiftiDataset(put(tmp_path / "flat", voxels=np.full(SHAPE, 7, np.uint8)))
    assert flat.load(flat.samples[0]).image_HW3.max() == 0


def test_slope_and_intercept_of_the_header_count(tmp_path: Path) -> None:
    put(tmp_path, ending=".nii")
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(2, -10)
    nibabel.save(image, tmp_path / "images" / "a.nii")
    dataset = NiftiDataset(tmp_path, keys("nifti", window=[0, 4000]))
    shown = dataset.load(dataset.samples[0]).image_HW3[..., 0]
    stored = np.asarray(nibabel.load(tmp_path / "images" / "a.nii").get_fdata())[:, :, 1].T
    assert np.abs(shown - np.clip((stored + 2000) / 4000, 0, 1) * 255).max() <= 1


def test_classes_become_connected_parts(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 0, 0] = mask[3:, 4:, 0] = 2
    dataset = NiftiDataset(put(tmp_path, mask=mask), keys("nifti", labels="classes"))
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 2


def test_a_volume_never_straddles_a_split(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path, stem=f"p{number // 2}_scan{number}")
    spec = DataSpec(reader="nifti", path=str(tmp_path))
    dataset = open_dataset(spec, data_root=None, seed=0, institution="north")
    assert {sample.group for sample in dataset.samples} == {f"p{n // 2}_scan{n}" for n in range(6)}
    joined = NiftiDataset(tmp_path, keys("nifti", group_pattern=r"(p\d+)_"))
    for samples, sequence in ((dataset.samples, True), (joined.samples, False)):
        spec, key = SplitSpec(sequence=sequence), simulated_key(0, "x")
        split = split_samples(samples, spec, LimitSpec(), key=key, scope="x")
        groups = [{sample.group for sample in part} for part in (split.train, split.val, split.test)]
        assert sum(map(len, groups)) == len(set.union(*groups))
    assert {sample.group for sample in joined.samples} == {"p0", "p1", "p2"}


def test_trailing_axes_of_one_and_volumes_forgotten_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "KEPT_BYTES", 10)
    put(tmp_path, "a", VOXELS[..., None], MASK[..., None])
    put(tmp_path, "b", ending=".nii")
    dataset = NiftiDataset(tmp_path)
    first = [dataset.load(sample).image_HW3 for sample in dataset.samples]
    again = [dataset.load(sample).image_HW3 for sample in dataset.samples]
    np.testing.assert_array_equal(first, again)


def turned() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = 2.5
    return affine


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mask": MASK[:, :, :3]}, "expected the shape of a.nii.gz, 5 x 6 x 4, found 5 x 6 x 3"),
        ({"affine": turned()}, "lies 2.50 mm away"),
        ({"mask": MASK * 0}, "found only background"),
        ({"mask": MASK * 0.5}, "found fractions"),
        ({"mask": MASK * np.float32(np.nan)}, "found fractions or non-finite"),
        ({"mask": MASK.astype(np.int16) - 1}, "found -1"),
        ({"voxels": np.stack([VOXELS] * 2, -1)}, "found the shape (5, 6, 4, 2)"),
        ({"voxels": VOXELS[..., 0]}, "found the shape (5, 6)"),
        ({"voxels": VOXELS.astype(np.complex64)}, "found the type complex64"),
    ],
)
def test_volumes_that_are_refused(tmp_path: Path, change: dict[str, np.ndarray], expected: str) -> None:
    text = fault(lambda: NiftiDataset(put(tmp_path, **change)))  # type: ignore[arg-type]
    assert expected in text
    assert str(tmp_path) in text


def test_all_volumes_are_judged_at_once(tmp_path: Path) -> None:
    put(tmp_path, "a", mask=MASK * 0)
    put(tmp_path, "b")
    put(tmp_path, "c", mask=MASK[:4])
    faults = fault(lambda: NiftiDataset(tmp_path)).splitlines()
    assert ["a.nii.gz" in faults[0], "c.nii.gz" in faults[1], len(faults)] == [True, True, 2]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 20, 400])
def test_truncated_files(tmp_path: Path, ending: str, kept: int) -> None:
    put(tmp_path, voxels=RNG.integers(-999, 999, SHAPE).astype(np.int16), ending=ending)
    file = tmp_path / "images" / f"a{ending}"
    file.write_bytes(file.read_bytes()[:kept] if kept < file.stat().st_size else file.read_bytes()[:-40])

    def read() -> None:
        dataset = NiftiDataset(tmp_path)
        dataset.load(dataset.samples[0])

    assert "cannot be read" in fault(read)


def test_nan_is_refused_and_so_is_a_huge_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    dataset = NiftiDataset(put(tmp_path, voxels=voxels), keys("nifti", window=[0, 1]))
    assert "found NaN" in fault(lambda: dataset.load(dataset.samples[0]))
    monkeypatch.setattr(volumes, "MAX_VOXELS", 100)
    assert "expected 1 to 100 voxels, found 5 x 6 x 4" in fault(lambda: NiftiDataset(tmp_path))


def test_layout(tmp_path: Path) -> None:
    assert "found nothing" in fault(lambda: NiftiDataset(tmp_path / "none"))
    put(tmp_path)
    put(tmp_path, "b")
    (tmp_path / "masks" / "b.nii.gz").rename(tmp_path / "masks" / "c.nii.gz")
    text = fault(lambda: NiftiDataset(tmp_path))
    assert "1 image (b.nii.gz) without" in text
    assert "1 mask (c.nii.gz) without" in text
    (tmp_path / "images" / "x.png").touch()
    assert "found 1 file (x.png) of another format" in fault(lambda: NiftiDataset(tmp_path))


def test_foreign_samples_and_changed_files(tmp_path: Path) -> None:
    dataset = NiftiDataset(put(tmp_path))
    assert "found the id 'z'" in fault(lambda: dataset.load(Sample("z")))
    put(tmp_path, voxels=VOXELS[:, :, :3])
    assert "expected the shape" in fault(lambda: dataset.load(dataset.samples[0]))


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert "pip install 'casam[medical]'" in fault(lambda: NiftiDataset(put_without_nibabel(tmp_path)))


def put_without_nibabel(root: Path) -> Path:
    (root / "images").mkdir()
    return root
