"""DICOM series: order, windows, pseudonyms, warnings, and every fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from casam_core.config.data_spec import DataSpec
from client.data import open_dataset
from client.data.dataset import Sample
from client.data.readers.dicom.dicom_dataset import DicomDataset
from scenarios.inspection.survey import Described
from tests.client.making import RNG, fault, keys

PIXELS = RNG.integers(0, 2000, (4, 6, 8)).astype(np.uint16)
MASK = np.zeros((6, 8), np.uint8)
MASK[1:3, 2:5] = 3
MASK[5, 7] = 9
NAME, PATIENT = "Doe^Jane", "MRN-0042"


def header(index: int, series: str, **changes: Any) -> Header:
    """Slice `index` of a CT series, 5 mm apart; a change to None removes the field."""
    made = Header()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    pixels = np.asarray(changes.pop("pixels", PIXELS[index]))
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, 0
    made.PixelData = changes.pop("data", pixels.tobytes())
    fields = {
        "PhotometricInterpretation": "MONOCHROME2",
        "PatientID": PATIENT,
        "PatientName": NAME,
        "SeriesInstanceUID": series,
        "InstanceNumber": index + 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 5 * index],
        "RescaleSlope": 1,
        "RescaleIntercept": -1000,
        "BurnedInAnnotation": "NO",
    }
    for key, value in {**fields, **changes}.items():
        if value is not None:
            setattr(made, key, value)
    return made


def put(root: Path, case: str = "c1", *, masks: dict[int, np.ndarray] | None = None, **changes: Any) -> Path:
    """A series of four slices, whose file names run against their positions; by default slice 1 has a mask.

    changes: for every slice; a callable is asked with the slice's index.
    """
    series = changes.pop("SeriesInstanceUID", generate_uid())
    (root / "images" / case).mkdir(parents=True, exist_ok=True)
    (root / "masks" / case).mkdir(parents=True, exist_ok=True)
    for index in range(4):
        own = {key: value(index) if callable(value) else value for key, value in changes.items()}
        header(index, series, **own).save_as(
            root / "images" / case / f"IM{9 - index}.dcm", enforce_file_format=True
        )
    for index, mask in ({1: MASK} if masks is None else masks).items():
        Image.fromarray(mask).save(root / "masks" / case / f"IM{9 - index}.png")
    return root


def shown(dataset: DicomDataset, place: int = 0) -> np.ndarray:
    return dataset.load(dataset.samples[place]).image_HW3[..., 0].astype(float)


def test_order_ids_window_and_labels(tmp_path: Path) -> None:
    put(tmp_path / "ct", masks={1: MASK, 3: MASK, 0: MASK * 0})
    spec = DataSpec(reader="dicom", path="ct", window=[0, 400])
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="north")
    assert isinstance(dataset, DicomDataset)
    assert isinstance(dataset, Described)
    assert [sample.id[-5:] for sample in dataset.samples] == ["-z001", "-z003"]
    assert dataset.empty == 2
    assert dataset.bits(dataset.samples[0]) == 16
    expected = np.clip((PIXELS[3] - 1000.0 + 200) / 400, 0, 1) * 255
    assert np.abs(shown(dataset, 1) - expected).max() <= 1
    labels = dataset.load(dataset.samples[0]).labels_HW
    np.testing.assert_array_equal(labels, np.select([MASK == 3, MASK == 9], [1, 2]))


def test_no_name_reaches_ids_groups_or_warnings(tmp_path: Path) -> None:
    put(tmp_path, "smith")
    put(tmp_path, "smith-again")
    put(tmp_path, "jones", PatientID="MRN-0043")
    put(tmp_path, "nobody", PatientID=None)
    dataset = DicomDataset(tmp_path)
    groups = [sample.group for sample in dataset.samples]
    assert len(groups) == 4
    assert len(set(groups)) == 3, "two series of one patient are one group"
    told = " ".join([*map(str, dataset.samples), *dataset.warnings])
    for secret in (NAME, PATIENT, "MRN", "smith", "Doe"):  # words no hex digest can spell
        assert secret not in told


def test_warnings_name_fields_and_burned_in_annotations(tmp_path: Path) -> None:
    put(tmp_path, AccessionNumber="A1", BurnedInAnnotation=lambda index: ["YES", "NO", None, "NO"][index])
    text = "\n".join(DicomDataset(tmp_path).warnings)
    assert "PatientName is filled in 4 of 4 headers" in text
    assert "AccessionNumber is filled in 4 of 4" in text
    assert "BurnedInAnnotation is YES in 1 of 4" in text
    assert "not stated in 1 of 4" in text
    assert "pixels were not searched" in text
    put(tmp_path / "clean", PatientName="", PatientID=None)
    told, _ = DicomDataset(tmp_path / "clean").warnings
    assert told == "PatientID is empty in 4 of 4 headers: the outer folder is the patient"


def test_private_tags_are_told(tmp_path: Path) -> None:
    series = generate_uid()
    put(tmp_path, SeriesInstanceUID=series)
    made = header(0, series)
    made.private_block(0x11, "maker", create=True).add_new(1, "LO", "Jane")
    made.save_as(tmp_path / "images" / "c1" / "IM9.dcm", enforce_file_format=True)
    assert "private tags, which may hold anything, are in 1 of 4" in "\n".join(
        DicomDataset(tmp_path).warnings
    )


def test_window_of_the_header_else_percentiles_of_the_series(tmp_path: Path) -> None:
    dataset = DicomDataset(put(tmp_path / "a", WindowCenter=[50, 9], WindowWidth=[500, 9]))
    assert np.abs(shown(dataset) - np.clip((PIXELS[1] - 1000.0 + 200) / 500, 0, 1) * 255).max() <= 1
    for number, more in enumerate(({}, {"WindowCenter": 5, "WindowWidth": 0})):
        dataset = DicomDataset(put(tmp_path / str(number), **more))
        low, high = np.percentile(PIXELS.astype(float), (0.5, 99.5))
        assert np.abs(shown(dataset) - np.clip((PIXELS[1] - low) / (high - low), 0, 1) * 255).max() <= 1


def test_inverted_gray_and_colour(tmp_path: Path) -> None:
    plain = shown(DicomDataset(put(tmp_path / "a"), keys("dicom", window=[0, 900])))
    inverted = shown(
        DicomDataset(
            put(tmp_path / "b", PhotometricInterpretation="MONOCHROME1"), keys("dicom", window=[0, 900])
        )
    )
    np.testing.assert_array_equal(inverted, 255 - plain)
    colour = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    dataset = DicomDataset(put(tmp_path / "c", PhotometricInterpretation="RGB", pixels=colour))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3, colour)


def test_order_by_number_where_positions_fail(tmp_path: Path) -> None:
    for number, more in enumerate(
        (
            {"ImagePositionPatient": None},
            {"ImagePositionPatient": [0, 0, 0]},
            {"ImageOrientationPatient": None},
        )
    ):
        dataset = DicomDataset(put(tmp_path / str(number), **more))
        assert dataset.samples[0].id.endswith("-z001")


def test_lossless_compression_is_read(tmp_path: Path) -> None:
    series = generate_uid()
    put(tmp_path, SeriesInstanceUID=series)
    made = header(1, series)
    made.compress(RLELossless)
    made.save_as(tmp_path / "images" / "c1" / "IM8.dcm", enforce_file_format=True)
    dataset = DicomDataset(tmp_path, keys("dicom", window=[0, 900]))
    assert np.abs(shown(dataset) - np.clip((PIXELS[1] - 1000.0 + 450) / 900, 0, 1) * 255).max() <= 1


def test_compression_without_a_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    dataset = DicomDataset(put(tmp_path, syntax=JPEGLSLossless, data=encapsulate([b"\0" * 64])))
    text = fault(lambda: dataset.load(dataset.samples[0]))
    assert "found JPEG-LS Lossless Image Compression compression without a decoder" in text
    assert "pylibjpeg" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PatientID": lambda i: f"p{i}"}, "found 4 different PatientID values"),
        ({"NumberOfFrames": 3}, "with several frames"),
        ({"InstanceNumber": 1, "ImagePositionPatient": None}, "repeated or missing"),
        ({"InstanceNumber": None, "ImagePositionPatient": None}, "repeated or missing"),
        (
            {"ImageOrientationPatient": lambda i: [1, 0, 0, 0, 1, 0] if i else [0, 1, 0, 0, 0, 1]},
            "one orientation",
        ),
        ({"ImagePositionPatient": [0, 0]}, "ImagePositionPatient has 2 numbers instead of 3"),
        ({"masks": {}}, "expected at least one labelled slice"),
        ({"masks": {1: MASK, 7: MASK}}, "found 1 mask (IM2.png) of none"),
    ],
)
def test_series_that_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    text = fault(lambda: DicomDataset(put(tmp_path, **changes)))
    assert expected in text
    assert PATIENT not in text


def test_series_are_judged_together_and_kept_apart(tmp_path: Path) -> None:
    put(tmp_path, "c1", masks={})
    put(tmp_path, "c2")
    put(tmp_path, "c3", NumberOfFrames=2)
    (tmp_path / "images" / "c3" / "note.txt").write_text("none")
    faults = fault(lambda: DicomDataset(tmp_path)).splitlines()
    assert len(faults) == 2
    assert "note.txt: expected a DICOM file" in faults[1]
    uid = generate_uid()
    put(tmp_path / "b", "c1", SeriesInstanceUID=uid)
    put(tmp_path / "b", "c2", SeriesInstanceUID=uid)
    assert "another folder holds too" in fault(lambda: DicomDataset(tmp_path / "b"))
    put(tmp_path / "d", "c1")
    header(0, generate_uid()).save_as(tmp_path / "d" / "images" / "c1" / "IM1.dcm", enforce_file_format=True)
    assert "found 2 different SeriesInstanceUID values" in fault(lambda: DicomDataset(tmp_path / "d"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PhotometricInterpretation": "YBR_FULL"}, "found YBR_FULL"),
        ({"data": b"\0" * 20}, "cannot be read"),
        ({"masks": {1: MASK[:, :5]}}, "expected the size of IM8.dcm, 8 x 6, found 5 x 6"),
        ({"Rows": 60000, "Columns": 60000}, "expected at most 67108864 pixels, found 60000 x 60000"),
    ],
)
def test_slices_that_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    dataset = DicomDataset(put(tmp_path, **changes))
    assert expected in fault(lambda: dataset.load(dataset.samples[0]))


def test_layout(tmp_path: Path) -> None:
    assert "found nothing" in fault(lambda: DicomDataset(tmp_path / "none"))
    assert "expected DICOM SEG or RTSTRUCT objects" in fault(lambda: DicomDataset(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    assert "expected at least one case" in fault(lambda: DicomDataset(tmp_path))
    (tmp_path / "images" / "c1").mkdir()
    assert "found 1 case (c1) in images/ only" in fault(lambda: DicomDataset(tmp_path))
    (tmp_path / "masks" / "c1").mkdir()
    assert "expected the slices of a series" in fault(lambda: DicomDataset(tmp_path))
    (tmp_path / "images" / "c1" / "more").mkdir()
    assert "expected slices only" in fault(lambda: DicomDataset(tmp_path))
    (tmp_path / "masks" / "a.png").touch()
    assert "found 1 file (a.png) beside them" in fault(lambda: DicomDataset(tmp_path))


def test_files_that_change_and_foreign_samples(tmp_path: Path) -> None:
    dataset = DicomDataset(put(tmp_path))
    assert "found the id 'x'" in fault(lambda: dataset.load(Sample("x")))
    Image.fromarray(MASK * 0).save(tmp_path / "masks" / "c1" / "IM8.png")
    assert "as when the dataset was opened" in fault(lambda: dataset.load(dataset.samples[0]))
    (tmp_path / "images" / "c1" / "IM8.dcm").unlink()
    assert "found no such file" in fault(lambda: dataset.load(dataset.samples[0]))
    assert "found no such file" in fault(lambda: dataset.bits(dataset.samples[0]))


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install 'casam[medical]'" in fault(lambda: DicomDataset(tmp_path))
