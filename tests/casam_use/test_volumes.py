"""A scan in, a mask on its grid out: reading, carrying on from slice to slice, scores in millimetres."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from numpy.typing import NDArray
from torch import from_numpy

from casam_core.bank.bank import Bank
from casam_core.errors import DataError
from casam_core.metrics.segmentation import edge_distance
from casam_core.model.forms.finder import PREFIX, Finder
from casam_core.routing.decision import Route
from casam_use.loaded_bank import load_bank
from casam_use.propagation import (
    VolumePrediction,
    box_around,
    equally_spaced,
    goes_on,
    segment_volume,
)
from casam_use.scan import Scan, read_labels, read_scan, write_labels
from casam_use.segmenter import NoFinderError, Prediction, Segmenter, paint
from casam_use.telling import volume_facts
from tests.banks import tiny_backbone, tiny_bank, tiny_entry
from tests.casam_command import Casam
from tests.casam_use.phantom_volume import SPACING, main, phantom_volume, scan_of
from tests.client.data.readers.dicom.test_dicom import put as put_series


def block(
    slices: slice, rows: slice, columns: slice, shape: tuple[int, int, int] = (8, 20, 24)
) -> NDArray[np.bool_]:
    mask_DHW = np.zeros(shape, bool)
    mask_DHW[slices, rows, columns] = True
    return mask_DHW


class Follows(Segmenter):
    """Answers every box with the true mask of the image's slice, as a perfect decoder would, and is less sure
    from slice `unsure` on. Without a box, it finds all objects of the slice."""

    def __init__(
        self, images_DHW: NDArray[np.uint8], labels_DHW: NDArray[np.int32], folder: Path, unsure: int = 99
    ) -> None:
        super().__init__(tiny_backbone(), load_bank(tiny_bank(folder).folder))
        self.slices = {image_HW.tobytes(): index for index, image_HW in enumerate(images_DHW)}
        self.labels_DHW, self.unsure = labels_DHW, unsure
        self.asked: list[str | None] = []

    def predict(self, image_HW3: NDArray[np.uint8], boxes: Any = (), **options: Any) -> Prediction:
        found = super().predict(image_HW3, boxes if len(boxes) else [(0, 0, 9, 9)], **options)
        self.asked.append(options["task"])
        index = self.slices[np.ascontiguousarray(image_HW3[..., 0]).tobytes()]
        labels_HW = self.labels_DHW[index]
        if not len(boxes):
            masks_NHW = labels_HW == np.unique(labels_HW[labels_HW > 0])[:, None, None]
            sure_N = np.full(len(masks_NHW), 0.9, np.float32)
            return replace(found, masks_NHW=masks_NHW, iou_N=sure_N, scores_N=sure_N)
        inside = [labels_HW[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] for x0, y0, x1, y1 in boxes]
        numbers = [np.bincount(part[part > 0]).argmax() if (part > 0).any() else -1 for part in inside]
        masks_NHW = np.stack([labels_HW == number for number in numbers])
        iou_N = np.full(len(masks_NHW), 0.9 if index < self.unsure else 0.75, np.float32)
        return replace(found, masks_NHW=masks_NHW, iou_N=iou_N)


def test_objects_are_followed_to_their_ends_and_the_scan_is_routed_once(tmp_path: Path) -> None:
    images_DHW, labels_DHW = phantom_volume(size=96)
    labels_DHW[11, :8, :8] = 2  # a second object, in one slice only
    follows = Follows(images_DHW, labels_DHW, tmp_path / "bank")
    boxes = [box_around(labels_DHW[11] == n) for n in (1, 2)]
    found = segment_volume(follows, scan_of(images_DHW), 11, boxes)
    inside = np.flatnonzero((labels_DHW == 1).any(axis=(1, 2)))
    assert found.reached == ((inside[0], inside[-1]), (11, 11))
    np.testing.assert_array_equal(found.labels_DHW, labels_DHW)
    assert follows.asked[0] is None
    assert set(follows.asked[1:]) == {found.first.name}
    assert found.encoded == len(follows.asked) <= len(inside) + 2


def test_without_a_box_and_a_slice_the_finder_begins_where_it_finds_most(tmp_path: Path) -> None:
    images_DHW, labels_DHW = phantom_volume(size=96)
    labels_DHW[14:18, :8, :8] = 2  # only where three of 24 slices lie: 1, 4, 6, 9, 12, 14, 17, ...
    labels_DHW[17:19, :4, 20:24] = 3
    found = segment_volume(Follows(images_DHW, labels_DHW, tmp_path / "bank"), scan_of(images_DHW), None)
    inside = np.flatnonzero((labels_DHW == 1).any(axis=(1, 2)))
    assert found.start == 17
    assert found.reached == ((inside[0], inside[-1]), (14, 17), (17, 18))
    np.testing.assert_array_equal(found.labels_DHW, labels_DHW)


def test_slices_whose_entry_has_no_finder_are_left_out(tmp_path: Path) -> None:
    images_DHW, labels_DHW = phantom_volume(size=96)

    class Mixed(Follows):
        able = range(9, 24)

        def predict(self, image_HW3: NDArray[np.uint8], boxes: Any = (), **options: Any) -> Prediction:
            index = self.slices[np.ascontiguousarray(image_HW3[..., 0]).tobytes()]
            if not len(boxes) and index not in self.able:
                raise NoFinderError("the entry of task 'histology' has no finder")
            return super().predict(image_HW3, boxes, **options)

    mixed = Mixed(images_DHW, labels_DHW, tmp_path / "bank")
    found = segment_volume(mixed, scan_of(images_DHW), None)
    np.testing.assert_array_equal(found.labels_DHW, labels_DHW)
    assert found.start == 9
    mixed.able = range(20, 24)  # where nothing is
    with pytest.raises(NoFinderError, match="'histology' has no finder"):
        segment_volume(mixed, scan_of(images_DHW), None)


def test_the_command_finds_objects_without_a_box(tmp_path: Path, casam: Casam) -> None:
    torch.manual_seed(0)
    finder = Finder(tiny_backbone().geometry.channels)
    torch.nn.init.normal_(finder.out.weight, std=0.5)
    torch.nn.init.constant_(finder.out.bias, 4.0)  # it finds something, whatever the weights
    arrays = {f"{PREFIX}{name}": value.numpy() for name, value in finder.state_dict().items()}
    plain, other = tiny_entry("polyp"), tiny_entry("histology")
    bank = Bank.open(tmp_path / "bank", create=True)
    bank.add(replace(plain, layer={**plain.layer, **arrays}))
    bank.add(other)
    main(0, tmp_path / "ct.nii.gz", tmp_path / "truth.nii.gz")
    line = ("predict-volume", "ct.nii.gz", "--bank", "bank", "--truth", "truth.nii.gz")
    done = casam(*line, "--task", "polyp", "--out", "mask.nii.gz", "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    labels_DHW = read_labels(tmp_path / "mask.nii.gz", read_scan(tmp_path / "ct.nii.gz"))
    assert told["slice"] in equally_spaced(24)
    assert len(told["objects"]) == len(told["found"]) > 0
    assert 0 < labels_DHW[told["slice"]].max() <= len(told["objects"])
    assert "'histology' has no finder" in casam(*line, "--task", "histology", "--out", "m.nii").refusal
    assert not (tmp_path / "m.nii").exists()


def test_a_found_object_is_compared_with_the_true_one_at_its_place(tmp_path: Path) -> None:
    images_DHW, labels_DHW = phantom_volume(size=96)
    scan, follows = scan_of(images_DHW), Follows(images_DHW, labels_DHW, tmp_path / "bank")
    (facts,) = volume_facts(segment_volume(follows, scan, 11), scan, labels_DHW.astype(np.int64) * 7)
    assert facts["dice"] == 1.0
    (facts,) = volume_facts(segment_volume(follows, scan, 11), scan, np.zeros_like(labels_DHW, np.int64))
    assert facts["dice"] == 0.0


def test_of_found_objects_the_smaller_stays_on_top() -> None:
    inner, whole = (
        block(slice(1), slice(8, 12), slice(8, 16))[0],
        block(slice(1), slice(4, 16), slice(4, 20))[0],
    )
    labels_HW = np.zeros(whole.shape, np.int32)
    paint(labels_HW, {1: inner, 2: whole}, smaller_on_top=True)
    np.testing.assert_array_equal(labels_HW, np.where(inner, 1, 2 * whole))
    paint(labels_HW, {1: inner, 2: whole}, smaller_on_top=False)
    np.testing.assert_array_equal(labels_HW, 2 * whole)


def test_few_slices_are_looked_at_each_once() -> None:
    assert equally_spaced(3) == [0, 1, 2]
    assert equally_spaced(24) == [1, 4, 6, 9, 12, 14, 17, 20, 22]


def test_an_object_ends_where_the_decoder_is_less_sure(tmp_path: Path) -> None:
    images_DHW, labels_DHW = phantom_volume(size=96)
    follows = Follows(images_DHW, labels_DHW, tmp_path / "bank", unsure=16)
    found = segment_volume(follows, scan_of(images_DHW), 11, [box_around(labels_DHW[11] == 1)])
    ((_, last),) = [ends for ends in found.reached if ends is not None]
    assert last == 15


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(4, 10), True),
        (slice(5, 10), True),
        (slice(0, 0), False),  # empty
        (slice(9, 15), False),  # elsewhere
        (slice(4, 20), False),  # suddenly larger
    ],
)
def test_where_an_object_ends(rows: slice, expected: bool) -> None:
    before_HW, mask_HW = np.zeros((2, 24, 24), bool)
    before_HW[4:10, 4:10], mask_HW[rows, 4:10] = True, True
    assert goes_on(before_HW, mask_HW) is expected


def test_a_box_stays_inside_the_slice() -> None:
    assert box_around(block(slice(0, 1), slice(0, 20), slice(3, 10))[0]) == (2, 0, 10, 19)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_lies_where_the_scan_lies(tmp_path: Path, axis: int) -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[0, -0.7, 0, 5], [0.9, 0, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
    stored = rng.normal(size=(6, 7, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "ct.nii.gz")
    scan = read_scan(tmp_path / "ct.nii.gz", axis)
    labels_DHW = np.zeros(scan.slices_DHW.shape, np.int32)
    labels_DHW[2, 3, 4] = 1
    write_labels(labels_DHW, scan, tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert mask.shape == stored.shape
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz", scan), labels_DHW)
    (voxel,) = np.argwhere(np.asarray(mask.dataobj))
    assert [voxel[i] for i in scan.order] == [2, 3, 4]
    sides = (0.9, 0.7, 2.5)
    assert scan.spacing == pytest.approx([sides[i] for i in scan.order])


def test_a_dicom_series_has_the_place_that_itk_gives_it(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    put_series(tmp_path)
    folder = next(path for path in (tmp_path / "images").iterdir())
    for file in folder.iterdir():  # without a window, and turned in space
        data = pydicom.dcmread(file)
        data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [z * 1.5, x + 3, y - 7]
        data.PixelSpacing = [0.6, 0.9]
        data.save_as(file)
    scan = read_scan(folder)
    write_labels(np.zeros(scan.slices_DHW.shape, np.int32), scan, tmp_path / "mask.nii.gz")
    ours = itk.ReadImage(str(tmp_path / "mask.nii.gz"))
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert ours.GetSize() == theirs.GetSize()
    corner = tuple(side - 1 for side in theirs.GetSize())
    for voxel in ((0, 0, 0), corner, (corner[0], 0, 0), (0, corner[1], 0)):
        np.testing.assert_allclose(
            ours.TransformIndexToPhysicalPoint(voxel), theirs.TransformIndexToPhysicalPoint(voxel), atol=1e-3
        )


TURNED = np.array([[0, -0.7, 0, 5], [0.9, 0, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])


def put_scan(path: Path, **fields: Any) -> Path:
    """A NIfTI scan with these fields of its header, written over the file as no library would."""
    whole = nibabel.Nifti1Image(np.arange(336, dtype=np.float32).reshape(6, 7, 8), TURNED).to_bytes()
    header = nibabel.Nifti1Header(whole[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + whole[348:])
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0, "qform_code": 0},
        {"qform_code": 1, "quatern_b": 1, "qoffset_x": 40},  # sform and qform name two places
        {"xyzt_units": 3},  # micrometres
        {"xyzt_units": 1},  # metres
    ],
)
def test_itk_finds_the_mask_where_it_finds_the_scan(tmp_path: Path, fields: dict[str, Any]) -> None:
    itk = pytest.importorskip("SimpleITK")
    scan = read_scan(put_scan(tmp_path / "ct.nii", **fields))
    write_labels(np.zeros(scan.slices_DHW.shape, np.int32), scan, tmp_path / "mask.nii")
    theirs, ours = (itk.ReadImage(str(tmp_path / name)) for name in ("ct.nii", "mask.nii"))
    for about in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(ours, about)() == getattr(theirs, about)()
    read_labels(tmp_path / "mask.nii", scan)


def test_nothing_of_the_scan_but_its_place_is_in_the_mask(tmp_path: Path) -> None:
    scan = read_scan(put_scan(tmp_path / "ct.nii", descrip=b"Doe^Jane", intent_name=b"Doe"))
    write_labels(np.zeros(scan.slices_DHW.shape, np.int32), scan, tmp_path / "mask.nii")
    assert b"Doe" not in (tmp_path / "mask.nii").read_bytes()


def test_volumes_are_in_millilitres_whatever_the_unit_and_the_angles() -> None:
    tilted = np.diag([0.8, 0.8, 2.5, 1.0])
    tilted[1, 2] = 1.0  # each slice lies 1 mm further along the rows; a voxel stays as large
    scan = Scan(np.zeros((4, 5, 6), np.uint8), 2, tilted)
    assert scan.voxel == pytest.approx(0.8 * 0.8 * 2.5)
    assert not scan.rectangular
    mask_DHW = np.ones((4, 5, 6), np.int32)
    one = Prediction(mask_DHW[:1] > 0, np.ones(1, np.float32), "polyp", Route("polyp", "polyp", 0.0), 1.0)
    (facts,) = volume_facts(VolumePrediction(mask_DHW, 0, one, ((0, 3),), 4), scan, mask_DHW.astype(np.int64))
    assert facts["millilitres"] == round(120 * 1.6 / 1000, 2)
    assert facts["hd95_mm"] is None  # distances are measured along axes at right angles


@pytest.mark.parametrize(("unit", "millimetres"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_a_scan_is_in_millimetres(tmp_path: Path, unit: int, millimetres: float) -> None:
    scan = read_scan(put_scan(tmp_path / "ct.nii", xyzt_units=unit))
    assert scan.spacing == pytest.approx([side * millimetres for side in (2.5, 0.7, 0.9)])


@pytest.mark.parametrize(
    "fields", [{"srow_x": [np.nan, 0, 0, 0]}, {"srow_z": [0, 0, 0, 0]}, {"srow_y": [0, -0.7, 0, 0]}]
)
def test_a_scan_without_a_place_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected a header with a place in space"):
        read_scan(put_scan(tmp_path / "ct.nii", **fields))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ImagePositionPatient": lambda i: [0, 0, 5 * i + 2 * (i == 3)]}, "at equal distances, found one"),
        ({"ImagePositionPatient": lambda i: [0, 0, 5 * (i % 2)]}, "time points apart"),
        ({"ImagePositionPatient": lambda i: [0, 0, 5 * i] if i != 2 else None}, "in every slice"),
        ({"ImagePositionPatient": [0, 0, 0]}, "a place in space"),
        ({"PixelSpacing": [0, 0]}, "a place in space"),
        ({"PixelSpacing": lambda i: [1 + i, 1]}, "one PixelSpacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "a place in space"),
    ],
)
def test_a_series_whose_mask_would_lie_elsewhere_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    put_series(tmp_path, **{"PixelSpacing": [0.6, 0.9], **changes})
    with pytest.raises(DataError, match=words):
        read_scan(tmp_path / "images" / "c1")


def test_a_series_is_cut_as_it_was_scanned(tmp_path: Path) -> None:
    put_series(tmp_path, PixelSpacing=[0.6, 0.9], SliceThickness=4)
    series = tmp_path / "images" / "c1"
    with pytest.raises(DataError, match="expected slice axis 2"):
        read_scan(series, axis=0)
    assert read_scan(series).spacing == pytest.approx((5, 0.6, 0.9))  # from place to place
    for file in sorted(series.iterdir())[1:]:
        file.unlink()
    assert read_scan(series).spacing == pytest.approx((4, 0.6, 0.9))  # a lone slice is as thick as it says


def test_the_distance_is_in_millimetres() -> None:
    true_DHW = block(slice(2, 6), slice(4, 14), slice(4, 14))
    assert edge_distance(true_DHW, true_DHW, SPACING) == 0
    moved = np.roll(true_DHW, 1, axis=0)  # one slice of 2.5 mm further
    assert edge_distance(moved, true_DHW, SPACING) == 2.5


def test_the_distance_is_that_of_monai() -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        masks = [
            block(
                slice(1, 7),
                slice(*sorted(rng.choice(20, 2, replace=False))),
                slice(2, int(rng.integers(5, 22))),
            )
            for _ in range(2)
        ]
        one, two = (from_numpy(mask[None, None].astype(np.float32)) for mask in masks)
        theirs = compute_hausdorff_distance(
            one, two, include_background=True, percentile=95, spacing=list(SPACING)
        )
        assert edge_distance(*masks, SPACING) == pytest.approx(float(theirs[0, 0]), abs=1e-5)


def test_the_command_writes_the_mask_and_its_scores(tmp_path: Path, casam: Casam) -> None:
    tiny_bank(tmp_path / "bank")
    main(0, tmp_path / "ct.nii.gz", tmp_path / "truth.nii.gz")
    line = ("--bank", "bank", "--slice", "12", "--box", "120,150,190,190", "--truth", "truth.nii.gz")
    done = casam("predict-volume", "ct.nii.gz", *line, "--out", "mask.nii.gz", "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    scan = read_scan(tmp_path / "ct.nii.gz")
    mask_DHW = read_labels(tmp_path / "mask.nii.gz", scan) == 1
    true_DHW = read_labels(tmp_path / "truth.nii.gz", scan) == 1
    both = 2 * (mask_DHW & true_DHW).sum() / (mask_DHW.sum() + true_DHW.sum())
    assert told["objects"][0]["dice"] == round(float(both), 3)
    assert told["objects"][0]["millilitres"] == round(mask_DHW.sum() * 2.5 * 0.8 * 0.8 / 1000, 2)
    assert casam("predict-volume", "ct.nii.gz", *line, "--out", "mask.nii.gz").refusal
    none = np.zeros(scan.slices_DHW.shape, np.int32)
    write_labels(none, scan, tmp_path / "none.nii.gz")
    empty = ("--slice", "12", "--box", "120,150,190,190", "--truth", "none.nii.gz", "--out", "again.nii")
    without = casam("predict-volume", "ct.nii.gz", "--bank", "bank", *empty, "--json")
    assert json.loads(without.out, parse_constant=pytest.fail)["objects"][0]["hd95_mm"] is None
    assert told["slice"] == 12
    assert (
        "name the slice"
        in casam(
            "predict-volume", "ct.nii.gz", "--bank", "bank", "--box", "1,1,9,9", "--out", "m2.nii"
        ).refusal
    )
    assert (
        "alignment.finder"
        in casam("predict-volume", "ct.nii.gz", "--bank", "bank", "--out", "m2.nii").refusal
    )
    assert (
        "0 to 23" in casam("predict-volume", "ct.nii.gz", *line, "--slice", "99", "--out", "m2.nii").refusal
    )
    assert not (tmp_path / "m2.nii").exists()


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / "broken.nii").write_bytes(b"x" * 400)
    (tmp_path / "empty").mkdir()
    for name in ("image.png", "nothing.nii", "broken.nii", "empty"):
        with pytest.raises(DataError):
            read_scan(tmp_path / name)
    scan = Scan(np.zeros((4, 5, 6), np.uint8), 2, np.eye(4))
    write_labels(np.zeros((4, 5, 6), np.int32), scan, tmp_path / "mask.nii")
    with pytest.raises(DataError, match=r"2\.00 mm away at a corner"):
        read_labels(tmp_path / "mask.nii", Scan(scan.slices_DHW, 2, np.diag([1, 1, 1.5, 1])))
    for window in ([40.0, 0.0], [40.0, -5.0], [float("nan"), 10.0]):
        with pytest.raises(DataError, match="a width above 0"):
            read_scan(tmp_path / "mask.nii", window=window)
    with pytest.raises(DataError, match="same grid"):
        read_labels(tmp_path / "mask.nii", Scan(np.zeros((4, 6, 5), np.uint8), 2, np.eye(4)))
