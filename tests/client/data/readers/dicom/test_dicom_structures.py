"""DICOM SEG and RTSTRUCT beside a series: masks by hand, holes, choices, and every fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage, generate_uid

from casam_core.config.data_spec import DataSpec
from client.data import open_dataset
from client.data.readers.dicom.dicom_dataset import DicomDataset
from tests.client.data.readers.dicom.test_dicom import header
from tests.client.making import fault, keys

SIZE = (6, 8)
SPACING = (2.0, 0.5)
"""mm between rows and between columns: a swap would show."""

ORIGIN = np.array([10.0, -20.0, 0.0])


def up(z: int) -> np.ndarray:
    """From the first slice to slice z, in mm."""
    return np.array([0.0, 0.0, 5.0 * z])


LIVER = np.zeros((4, *SIZE), np.uint8)
LIVER[1, 1:4, 2:6] = 1
LIVER[2, 2:4, 2:5] = 1
TUMOUR = np.zeros((4, *SIZE), np.uint8)
TUMOUR[1, 2, 3:5] = 1


def series(folder: Path, uid: str, patient: str = "MRN-0042") -> None:
    """Four CT slices, 5 mm apart, whose names run against their places."""
    folder.mkdir(parents=True)
    for index in range(4):
        made = header(index, uid, PatientID=patient, Modality="CT")
        made.PixelSpacing, made.ImagePositionPatient = list(SPACING), list(ORIGIN + up(index))
        made.save_as(folder / f"1-{9 - index}.dcm", enforce_file_format=True)


def bare(modality: str, kind: UID, uid: str) -> Header:
    made = Header()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = kind
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.Modality, made.SeriesInstanceUID, made.PatientID = modality, generate_uid(), "MRN-0042"
    made.uid_of_series = uid
    return made


def item(**fields: Any) -> Header:
    made = Header()
    for key, value in fields.items():
        setattr(made, key, Sequence(value) if isinstance(value, list) and key.endswith("Sequence") else value)
    return made


def seg(folder: Path, uid: str, segments: dict[str, np.ndarray], **changes: Any) -> None:
    """A binary SEG; changes: fields, and of its frames `shift` in mm, `spacing` and `directions`."""
    folder.mkdir(parents=True, exist_ok=True)
    made, shift = bare("SEG", SegmentationStorage, uid), np.array(changes.pop("shift", [0, 0, 0]))
    frames = [(n, z, mask[z]) for n, mask in enumerate(segments.values(), 1) for z in range(4)]
    kind = changes.get("SegmentationType", "BINARY")
    values = np.stack([mask for _, _, mask in frames])
    made.Rows, made.Columns, made.NumberOfFrames = *SIZE, len(frames)
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 1 if kind == "BINARY" else 8
    made.HighBit, made.SegmentationType = made.BitsStored - 1, kind
    made.PixelData = pack_bits(values.ravel()) if kind == "BINARY" else values.tobytes()
    made.ReferencedSeriesSequence = Sequence([item(SeriesInstanceUID=uid)])
    made.SegmentSequence = Sequence(
        [item(SegmentNumber=n, SegmentLabel=name) for n, name in enumerate(segments, 1)]
    )
    upright = [item(ImageOrientationPatient=changes.pop("directions", [1, 0, 0, 0, 1, 0]))]
    spaced = [item(PixelSpacing=changes.pop("spacing", list(SPACING)))]
    made.SharedFunctionalGroupsSequence = Sequence(
        [item(PlaneOrientationSequence=upright, PixelMeasuresSequence=spaced)]
    )
    made.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=n)],
                PlanePositionSequence=[item(ImagePositionPatient=list(ORIGIN + up(z) + shift))],
            )
            for n, z, _ in frames
        ]
    )
    for key, value in changes.items():
        setattr(made, key, value)
    del made.uid_of_series
    made.save_as(folder / "1-1.dcm", enforce_file_format=True)


def rectangle(z: float, rows: tuple[int, int], columns: tuple[int, int]) -> Header:
    """The outline of some rows and columns (ends excluded) on slice z, along the borders of pixels."""
    (top, bottom), (left, right) = rows, columns
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    places = [ORIGIN + np.array([(x - 0.5) * SPACING[1], (y - 0.5) * SPACING[0], 5 * z]) for x, y in corners]
    return item(
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=4,
        ContourData=[float(value) for place in places for value in place],
    )


def rtstruct(folder: Path, uid: str, rois: dict[str, list[Header]], body: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = bare("RTSTRUCT", RTStructureSetStorage, uid)
    numbers = dict(enumerate(rois, 1))
    reference = item(
        RTReferencedStudySequence=[item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=uid)])]
    )
    made.ReferencedFrameOfReferenceSequence = Sequence([reference])
    made.StructureSetROISequence = Sequence([item(ROINumber=n, ROIName=name) for n, name in numbers.items()])
    made.ROIContourSequence = Sequence(
        [item(ReferencedROINumber=n, ContourSequence=rois[name]) for n, name in numbers.items()]
    )
    made.RTROIObservationsSequence = Sequence(
        [
            item(ReferencedROINumber=n, RTROIInterpretedType="EXTERNAL" if name == body else "ORGAN")
            for n, name in numbers.items()
        ]
    )
    del made.uid_of_series
    made.save_as(folder / "1-1.dcm", enforce_file_format=True)


LIVER_OUTLINES = [rectangle(1, (1, 4), (2, 6)), rectangle(2, (2, 4), (2, 5))]
TUMOUR_OUTLINES = [rectangle(1, (2, 3), (3, 5))]


def as_seg(root: Path, uid: str) -> None:
    seg(root / "P1" / "study" / "300-SEG", uid, {"liver": LIVER, "tumour": TUMOUR})


def as_rtstruct(root: Path, uid: str) -> None:
    rtstruct(root / "P1" / "study" / "200-RT", uid, {"liver": LIVER_OUTLINES, "tumour": TUMOUR_OUTLINES})


def with_seg(root: Path) -> Path:
    """A series with its SEG."""
    series(root / "CT", "1.2.3")
    seg(root / "SEG", "1.2.3", {"liver": LIVER, "tumour": TUMOUR})
    return root


def with_rtstruct(root: Path) -> Path:
    """A series with its RTSTRUCT."""
    series(root / "CT", "1.2.3")
    rtstruct(root / "RT", "1.2.3", {"liver": LIVER_OUTLINES})
    return root


Put = Callable[[Path, str], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    series(tmp_path / "P1" / "study" / "100-CT", "1.2.3")
    (tmp_path / "LICENSE").write_text("a file without an ending that is no DICOM")
    return tmp_path


@pytest.mark.parametrize("put", [as_seg, as_rtstruct])
def test_structures_lie_where_they_were_drawn(root: Path, put: Put) -> None:
    put(root, "1.2.3")
    spec = DataSpec(reader="dicom", path=str(root))
    dataset = open_dataset(spec, data_root=None, seed=0, institution="north")
    assert isinstance(dataset, DicomDataset)
    assert [sample.id[-5:] for sample in dataset.samples] == ["-z001", "-z002"]
    assert len({sample.group for sample in dataset.samples}) == 1
    assert dataset.empty == 2
    first, second = (dataset.load(sample).labels_HW for sample in dataset.samples)
    np.testing.assert_array_equal(first, np.where(TUMOUR[1], 2, LIVER[1]))
    np.testing.assert_array_equal(second, LIVER[2])
    assert "structures: liver, tumour; choose some with structures = [...]" in dataset.warnings


@pytest.mark.parametrize("put", [as_seg, as_rtstruct])
def test_one_structure_can_be_chosen(root: Path, put: Put) -> None:
    put(root, "1.2.3")
    dataset = DicomDataset(root, keys("dicom", structures=["tumour"]))
    (sample,) = dataset.samples
    np.testing.assert_array_equal(dataset.load(sample).labels_HW, TUMOUR[1])
    said = fault(lambda: DicomDataset(root, keys("dicom", structures=["spleen"])))
    assert "expected structures among liver, tumour, found spleen" in said


def test_an_inner_outline_is_a_hole_and_the_body_is_left_out(root: Path) -> None:
    ring = [rectangle(1, (1, 5), (1, 7)), rectangle(1, (2, 4), (2, 6))]
    body = [rectangle(1, (0, 6), (0, 8))]
    rtstruct(root / "rt", "1.2.3", {"wall": ring, "BODY": body}, body="BODY")
    expected = np.zeros(SIZE, np.uint8)
    expected[1:5, 1:7], expected[2:4, 2:6] = 1, 0
    dataset = DicomDataset(root)
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, expected)
    whole = DicomDataset(root, keys("dicom", structures=["BODY"]))
    assert whole.load(whole.samples[0]).labels_HW.all()


def test_a_half_or_more_of_a_fraction_belongs_to_the_segment(root: Path) -> None:
    values = LIVER * np.array([0, 99, 128, 0], np.uint8)[:, None, None]
    seg(root / "s", "1.2.3", {"liver": values}, SegmentationType="FRACTIONAL", MaximumFractionalValue=255)
    dataset = DicomDataset(root)
    assert [sample.id[-5:] for sample in dataset.samples] == ["-z002"]
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, LIVER[2])


def test_a_label_map_holds_the_numbers_of_its_segments(root: Path) -> None:
    values = np.where(TUMOUR, 2, LIVER).astype(np.uint8)
    seg(root / "s", "1.2.3", {"map": values}, SegmentationType="LABELMAP")
    seg_file = root / "s" / "1-1.dcm"
    made = pydicom.dcmread(seg_file)
    made.SegmentSequence = Sequence(
        [item(SegmentNumber=n, SegmentLabel=name) for n, name in enumerate(["Background", "liver", "tumour"])]
    )
    made.save_as(seg_file)
    dataset = DicomDataset(root)
    first = dataset.load(dataset.samples[0]).labels_HW
    np.testing.assert_array_equal(first, np.where(TUMOUR[1], 2, LIVER[1]))


def test_a_seg_goes_before_an_rtstruct_of_the_same_series(root: Path) -> None:
    as_seg(root, "1.2.3")
    as_rtstruct(root, "1.2.3")
    assert "1 RTSTRUCT are not read, because their series has a SEG" in DicomDataset(root).warnings


def test_structures_of_one_object_with_the_same_name_are_objects_of_their_own(tmp_path: Path) -> None:
    """As of several lesions: joined by exclusive or, two that overlap would lose what they share."""
    expected = np.where(TUMOUR[1], 2, LIVER[1])
    for put in (as_seg, as_rtstruct):
        root = tmp_path / put.__name__
        series(root / "P1" / "study" / "100-CT", "1.2.3")
        put(root, "1.2.3")
        (file,) = root.rglob("1-1.dcm")
        made = pydicom.dcmread(file)
        for found in made.get("SegmentSequence", []):
            found.SegmentLabel = "lesion"
        for found in made.get("StructureSetROISequence", []):
            found.ROIName = "lesion"
        made.save_as(file)
        dataset = DicomDataset(root)
        np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, expected)


def test_two_readers_of_one_structure_are_a_fault(root: Path) -> None:
    seg(root / "a", "1.2.3", {"liver": LIVER})
    seg(root / "b", "1.2.3", {"liver": LIVER})
    assert "found 1 structure (liver) in several, as of several readers" in fault(lambda: DicomDataset(root))


def test_two_objects_with_different_structures_are_joined(root: Path) -> None:
    seg(root / "a", "1.2.3", {"liver": LIVER})
    seg(root / "b", "1.2.3", {"tumour": TUMOUR})
    dataset = DicomDataset(root)
    np.testing.assert_array_equal(
        dataset.load(dataset.samples[0]).labels_HW, np.where(TUMOUR[1], 2, LIVER[1])
    )


def test_without_a_patients_id_the_outer_folder_is_the_patient(tmp_path: Path) -> None:
    """Two series of one patient, in folders that all patients have, stay on one side of a split."""
    for person in ("P1", "P2"):
        for when in ("early", "late"):
            uid = f"1.2.{person[1]}.{len(when)}"
            series(tmp_path / person / when / "CT", uid, patient="")
            seg(tmp_path / person / when / "SEG", uid, {"liver": LIVER})
    dataset = DicomDataset(tmp_path)
    groups = [sample.group for sample in dataset.samples]
    assert [groups.count(group) for group in set(groups)] == [4, 4]
    assert "PatientID is empty in 16 of 16 headers: the outer folder is the patient" in dataset.warnings


def test_two_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    """As of two echoes: nobody says which of them an outline belongs to."""
    root = with_rtstruct(tmp_path)
    for number, file in enumerate(sorted((root / "CT").iterdir(), reverse=True)):
        made = pydicom.dcmread(file)
        made.ImagePositionPatient, made.InstanceNumber = list(ORIGIN + up(number // 2)), number
        made.save_as(file)
    assert "expected one slice at each place, found several" in fault(lambda: DicomDataset(root))


def test_an_object_may_name_its_series_twice(root: Path) -> None:
    seg(root / "a", "1.2.3", {"liver": LIVER}, ReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.3")] * 2)
    assert len(DicomDataset(root).samples) == 2


def test_a_series_without_an_object_is_counted(root: Path) -> None:
    series(root / "P2" / "CT", "1.2.4", patient="MRN-0043")
    as_seg(root, "1.2.3")
    dataset = DicomDataset(root)
    assert len(dataset.samples) == 2
    assert "1 series without a SEG or RTSTRUCT are not read" in dataset.warnings


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: None, "expected DICOM SEG or RTSTRUCT objects beside 1 series, found none"),
        (lambda root: as_seg(root, "9.9"), "expected the one series it refers to in this folder, found 0"),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, shift=[0, 0, 30]),
            "expected every segmentation on a slice of its series",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, shift=[2, 0, 0]),
            "expected every segmentation on a slice of its series",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, shift=[0, 0, 2]),
            "expected every segmentation on a slice of its series",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, spacing=[1.0, 0.5]),
            "expected every segmentation on a slice of its series",
        ),
        (
            lambda root: seg(
                root / "s", "1.2.3", {"a": LIVER}, directions=[0.9986, 0.0523, 0, -0.0523, 0.9986, 0]
            ),
            "expected every segmentation on a slice of its series",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, Rows=8, Columns=6),
            "expected the size of its slices, 8 x 6, found 6 x 8",
        ),
        (
            lambda root: rtstruct(root / "s", "1.2.3", {"a": [rectangle(7, (1, 3), (1, 3))]}),
            "expected every outline of 'a' on a slice of its series",
        ),
        (
            lambda root: rtstruct(
                root / "s", "1.2.3", {"a": [rectangle(z, (1, 3), (1, 3)) for z in (1, 1.2, 1.4)]}
            ),
            "expected every outline of 'a' on a slice of its series",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, SegmentSequence=None),
            "expected at least one structure on its series, found none",
        ),
        (
            lambda root: seg(root / "s", "1.2.3", {"a": LIVER}, SharedFunctionalGroupsSequence=None),
            "expected a complete DICOM SEG or RTSTRUCT",
        ),
    ],
    ids=[
        "no object",
        "no series",
        "above",
        "beside",
        "between",
        "spacing",
        "turned",
        "size",
        "outline above",
        "outlines between",
        "empty",
        "incomplete",
    ],
)
def test_faults(root: Path, make: Callable[[Path], None], expected: str) -> None:
    make(root)
    assert expected in fault(lambda: DicomDataset(root))
