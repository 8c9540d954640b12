"""From a scenario's data table to a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from casam_core.errors import DataError
from casam_core.scenario import DataSpec
from client.data.dataset import Dataset
from client.data.folder import FolderDataset

Opener = Callable[[DataSpec, Path | None, int, str], Dataset]
"""(spec, data_root, seed, institution) -> dataset."""


def open_dataset(spec: DataSpec, *, data_root: Path | None, seed: int, institution: str) -> Dataset:
    """The dataset `spec` describes, as `institution` holds it.

    data_root: folder of this site that relative paths start from. seed: the run's seed (phantoms only).
    Raises DataError if the data are not there or not laid out as expected; files are not yet read.
    """
    return READERS[spec.reader](spec, data_root, seed, institution)


def _open_folder(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    assert spec.path is not None  # DataSpec requires it of this reader
    return FolderDataset(_resolve(spec.path, data_root, institution), spec.labels, spec.group_pattern)


def _open_phantom(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> Dataset:
    # Imported here: a site with real data never needs the generators.
    from client.data.phantoms.dataset import PhantomDataset

    assert spec.phantom is not None  # DataSpec requires it of this reader
    return PhantomDataset(
        name=spec.phantom, images=spec.images, size=spec.size, seed=seed, institution=institution
    )


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


READERS: dict[str, Opener] = {"folder": _open_folder, "phantom": _open_phantom}
"""Every reader a scenario may name."""
