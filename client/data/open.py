"""Opening the dataset that a scenario's data table describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import Dataset
from client.data.readers.coco import CocoDataset
from client.data.readers.dicom.dicom_dataset import DicomDataset
from client.data.readers.folder import FolderDataset
from client.data.readers.itk import ItkDataset
from client.data.readers.med_datasets import MedDataset
from client.data.readers.nifti import NiftiDataset
from client.data.readers.tiff_stack import TiffStackDataset
from client.data.readers.yolo import YoloDataset

Opener = Callable[[DataSpec, Path | None, int, str], Dataset]
"""(spec, data_root, seed, institution) -> dataset."""


def open_dataset(spec: DataSpec, *, data_root: Path | None, seed: int, institution: str) -> Dataset:
    """The dataset `spec` describes, as `institution` holds it.

    Images are not read yet. Masks of volumes are read, because they show which slices are labelled.

    Args:
        data_root: folder of this site from which relative paths start.
        seed: the run's seed (phantoms only).

    Raises:
        DataError: the data are missing or have another layout.
    """
    return READERS[spec.reader](spec, data_root, seed, institution)


def location_of(spec: DataSpec, data_root: Path | None, institution: str) -> str:
    """Where the images are; it identifies them under every task name."""
    if spec.path is None:
        return f"phantom/{institution}/{spec.phantom}"
    return str(((data_root or Path()) / Path(spec.path).expanduser()).resolve())


def _files(reader: Callable[[Path, DataSpec], Dataset]) -> Opener:
    """Opens the folder that a spec names with a reader of files."""
    return lambda spec, data_root, seed, institution: reader(_folder(spec, data_root, institution), spec)


def _open_phantom(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    # Imported here: a site with real data never needs the generators.
    from client.data.phantoms.painted import PhantomDataset

    assert spec.phantom is not None  # DataSpec requires it of this reader
    return PhantomDataset(spec.phantom, spec.images, spec.size, seed, institution, spec.shift)


def _folder(spec: DataSpec, data_root: Path | None, institution: str) -> Path:
    written = spec.path
    assert written is not None  # DataSpec requires it of every reader of files
    try:
        path = Path(written).expanduser()
        if path.is_absolute():
            return path
        if data_root is not None:
            return data_root.expanduser() / path
    except RuntimeError as fault:
        raise DataError(
            f"{written}: expected a path of {institution}'s data, found an unknown home folder; "
            f"write the path in full"
        ) from fault
    raise DataError(
        f"{written}: expected a folder to start from for this relative path of {institution}'s data, found "
        f"none; pass --data-root or write the path in full"
    )


READERS: dict[str, Opener] = {
    "folder": _files(FolderDataset),
    "phantom": _open_phantom,
    "nifti": _files(NiftiDataset),
    "itk": _files(ItkDataset),
    "dicom": _files(DicomDataset),
    "coco": _files(CocoDataset),
    "yolo": _files(YoloDataset),
    "tiff_stack": _files(TiffStackDataset),
    "med_datasets": _files(MedDataset),
}
"""All readers, by their name in a scenario."""
