"""Opening the dataset that a scenario's data table describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import Dataset
from client.data.readers.folder import FolderDataset
from client.data.readers.pairs import rules_of

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


def _open_folder(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    folder = _folder(spec, data_root, institution)
    return FolderDataset(folder, spec.labels, rules_of(spec), spec.object_values)


def _open_phantom(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    # Imported here: a site with real data never needs the generators.
    from client.data.phantoms.painted import PhantomDataset

    assert spec.phantom is not None  # DataSpec requires it of this reader
    return PhantomDataset(
        name=spec.phantom, images=spec.images, size=spec.size, seed=seed, institution=institution
    )


def _open_nifti(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.nifti import open_nifti

    return _open_scans(open_nifti, spec, _folder(spec, data_root, institution))


def _open_itk(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.itk import open_itk

    return _open_scans(open_itk, spec, _folder(spec, data_root, institution))


def _open_scans(open_: Callable[..., Dataset], spec: DataSpec, folder: Path) -> Dataset:
    """Volumes as gray slices: their readers have the same options."""
    return open_(
        folder, slice_axis=spec.slice_axis, window=spec.window, labels=spec.labels, rules=rules_of(spec)
    )


def _open_dicom(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.dicom.dicom_dataset import DicomDataset

    return DicomDataset(
        _folder(spec, data_root, institution),
        window=spec.window,
        labels=spec.labels,
        structures=spec.structures,
    )


def _open_coco(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.coco import CocoDataset

    return CocoDataset(
        _folder(spec, data_root, institution), annotations=spec.annotations, group_pattern=spec.group_pattern
    )


def _open_yolo(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.yolo import YoloDataset

    return YoloDataset(_folder(spec, data_root, institution), spec.group_pattern)


def _open_tiff_stack(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.tiff_stack import open_tiff_stack

    return open_tiff_stack(
        _folder(spec, data_root, institution),
        labels=spec.labels,
        rules=rules_of(spec),
        channel=spec.channel,
    )


def _open_med_datasets(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    from client.data.readers.med_datasets import MedDataset

    return MedDataset(
        _folder(spec, data_root, institution),
        labels=spec.labels,
        group_pattern=spec.group_pattern,
        pseudo_masks=spec.pseudo_masks,
    )


def _folder(spec: DataSpec, data_root: Path | None, institution: str) -> Path:
    assert spec.path is not None  # DataSpec requires it of every reader of files
    return _resolve(spec.path, data_root, institution)


def _resolve(written: str, data_root: Path | None, institution: str) -> Path:
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
    "folder": _open_folder,
    "phantom": _open_phantom,
    "nifti": _open_nifti,
    "itk": _open_itk,
    "dicom": _open_dicom,
    "coco": _open_coco,
    "yolo": _open_yolo,
    "tiff_stack": _open_tiff_stack,
    "med_datasets": _open_med_datasets,
}
"""All readers, by their name in a scenario. Readers of less common formats are imported when needed."""
