"""Pairs of volume files (image and mask) as a dataset of slices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import DataError, optional_module
from client.data.damage import for_each
from client.data.dataset import LoadedSample, Sample
from client.data.file_patterns import Pair
from client.data.labels import Meaning, layered, number
from client.data.listing import naming
from client.data.pixels import as_rgb, percentile_range, to_uint8, window_range
from client.data.readers.pairs import SAME_STEMS, FileRules, listed

KEPT_BYTES = 2**29
"""Decoded volumes that stay in memory, 512 MiB: training loads slices in random order."""

MAX_VOXELS = 2**30
"""Largest volume read, 1024 slices of 1024 x 1024; otherwise a small packed file could fill the memory."""

SAME_PLACE_MM = 0.05
"""Tolerance for places in space: tools differ in their last digits; voxels are 0.2 mm or larger."""


@dataclass(frozen=True)
class VolumeFormat:
    """How one kind of file is read. D slices of H x W; every function raises DataError.

    suffixes: file endings in lower case. names: the same for messages.
    image: uint8 (D, H, W) or RGB (D, H, W, 3). mask: whole numbers >= 0, (D, H, W).
    compare: refuses an image and a mask on different grids; reads the headers only.
    bits: bits per stored value of an image file.
    """

    suffixes: frozenset[str]
    names: str
    image: Callable[[Path], NDArray[np.uint8]]
    mask: Callable[[Path], NDArray[Any]]
    compare: Callable[[Path, Path], None]
    bits: Callable[[Path], int]


class VolumeDataset:
    """Every labelled slice of the volumes in `path`/images and `path`/masks (same stems).

    Slices without a label are excluded, because a sample holds one instance or more; `empty` counts them. A
    volume without any label is a fault. Ids are the file's stem and the slice's index from 0, e.g.
    `case01-z042`, so that slices keep their order. A volume is a group: a split never divides it.
    rules: group_pattern may join the volumes of one patient. With the mark {class} a volume has a mask for
    each class, of which some may be empty.

    The constructor reads every mask, because masks show which slices are labelled. It raises the faults of
    all volumes together.
    """

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        format_: VolumeFormat,
        labels: Meaning = "instances",
        rules: FileRules = SAME_STEMS,
    ) -> None:
        self._path, self._format, self._labels = path, format_, labels
        pairs = listed(path, format_.suffixes, format_.names, rules)
        several = [pair.id for pair in pairs if len(pair.masks) > 1]
        if several and not rules.mask_is_class:
            raise DataError(
                f"{path}: expected one mask for each volume, found several for {naming(several, 'volume')}; "
                "write {class} in mask_files where the name of a class is"
            )
        self._files = {pair.id: (pair.image, pair.masks) for pair in pairs}
        self._images = Recent()
        self._masks = Recent()
        self.empty = 0
        self._places: dict[str, tuple[str, int]] = {}
        self._pairs: dict[str, Pair] = {}
        labelled = for_each(self._labelled_slices, list(self._files))
        for pair, slices in zip(pairs, labelled, strict=True):
            for index in slices:
                id_ = f"{pair.id}-z{index:03d}"
                self._places[id_], self._pairs[id_] = (pair.id, index), pair

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All labelled slices, sorted by id."""
        pairs = sorted(self._pairs.items())
        return tuple(Sample(id_, pair.group or pair.id, pair.part) for id_, pair in pairs)

    def load(self, sample: Sample) -> LoadedSample:
        """One slice: uint8 RGB and int32 labels 1..n. Raises DataError naming the file."""
        stem, index = self._place(sample)
        image_path, mask_paths = self._files[stem]
        image_DHW = self._images.get(image_path, self._format.image)
        layers_HW = []
        for mask_path in mask_paths:
            values_DHW = self._masks.get(mask_path, self._read_mask)
            if image_DHW.shape[:3] != values_DHW.shape:
                raise shapes_differ(image_path, mask_path, image_DHW.shape[:3], values_DHW.shape)
            layers_HW.append(values_DHW[index])
        if not any(values_HW.any() for values_HW in layers_HW):
            raise DataError(
                f"{mask_paths[0]}: expected labels in slice {index}, as when the dataset was opened, found "
                f"none; leave the files alone while they are read"
            )
        return LoadedSample(as_rgb(image_DHW[index]), self._numbered(layers_HW, mask_paths, index))

    def _numbered(
        self, layers_HW: list[NDArray[Any]], mask_paths: tuple[Path, ...], index: int
    ) -> NDArray[np.int32]:
        """Instances 1..n of one slice, from one mask or from one for each class."""
        if len(layers_HW) == 1:
            return number(layers_HW[0], self._labels)
        labels_HW, hidden = layered(layers_HW, self._labels)
        if hidden:
            raise DataError(
                f"{mask_paths[hidden[0]]}: expected a visible instance in slice {index}, found one below "
                "those of other classes; correct the masks"
            )
        return labels_HW

    def bits(self, sample: Sample) -> int:
        """Bits per voxel of the image file."""
        return self._format.bits(self._files[self._place(sample)[0]][0])

    def _place(self, sample: Sample) -> tuple[str, int]:
        if sample.id not in self._places:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        return self._places[sample.id]

    def _labelled_slices(self, stem: str) -> list[int]:
        image_path, mask_paths = self._files[stem]
        found: set[int] = set()
        for mask_path in mask_paths:
            self._format.compare(image_path, mask_path)
            values_DHW = self._masks.get(mask_path, self._read_mask)
            found |= set(np.flatnonzero(values_DHW.any(axis=(1, 2))).tolist())
        if not found:
            raise DataError(
                f"{mask_paths[0]}: expected at least one labelled voxel, found only background (0); label "
                "the volume, or leave the pair out of the data"
            )
        self.empty += len(values_DHW) - len(found)
        return sorted(found)

    def _read_mask(self, path: Path) -> NDArray[Any]:
        values_DHW = self._format.mask(path)
        return values_DHW.astype(np.min_scalar_type(int(values_DHW.max())))


class Recent:
    """A cache of arrays by file; above KEPT_BYTES, the least recently used arrays are removed."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[Path, NDArray[Any]] = OrderedDict()

    def get(self, path: Path, read: Callable[[Path], NDArray[Any]]) -> NDArray[Any]:
        """The array of `path`, from the cache or read now."""
        if path not in self._arrays:
            self._arrays[path] = read(path)
        self._arrays.move_to_end(path)
        while len(self._arrays) > 1 and sum(array.nbytes for array in self._arrays.values()) > KEPT_BYTES:
            self._arrays.popitem(last=False)
        return self._arrays[path]


def across(values_XYZ: NDArray[Any], slice_axis: int) -> NDArray[Any]:
    """slices_DHW of a volume: the slice axis first, then the higher of the others as rows."""
    columns, rows = (axis for axis in range(3) if axis != slice_axis)
    return np.ascontiguousarray(values_XYZ.transpose(slice_axis, rows, columns))


def gray_slices(
    values_XYZ: NDArray[np.float32], path: Path, slice_axis: int, window: list[float] | None
) -> NDArray[np.uint8]:
    """uint8 slices_DHW of a scan. window: [centre, width]; by default the volume's own percentiles."""
    # Computed also with a window, because it refuses NaN, which would silently become black.
    own_range = percentile_range(values_XYZ, str(path))
    black, white = window_range(window) if window else own_range
    return across(to_uint8(values_XYZ, black, white), slice_axis)


def require_same_place(image_path: Path, mask_path: Path, corners_apart: NDArray[np.float64]) -> None:
    """Raises DataError if a corner of the mask lies more than SAME_PLACE_MM from the image's."""
    apart = float(np.abs(corners_apart).max())
    if not apart <= SAME_PLACE_MM:
        raise DataError(
            f"{mask_path}: expected the place of {image_path.name}, found one that lies {apart:.2f} mm away "
            "at a corner; resample the mask to the image's grid"
        )


def whole_labels(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """`values` as integers of 0 and above; DataError for fractions, NaN and negative labels."""
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise DataError(
                f"{path}: expected whole-number labels, found fractions or non-finite values; save the label "
                f"map itself, not a probability or a resampled one"
            )
        values = values.astype(np.int64)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8)
    elif not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{path}: expected whole-number labels, found the type {values.dtype}; save it as integers"
        )
    if values.min() < 0:
        raise DataError(
            f"{path}: expected labels of 0 (background) and above, found {int(values.min())}; renumber it"
        )
    if values.max() >= 2**31:
        raise DataError(
            f"{path}: expected labels below {2**31}, found {int(values.max())}; renumber it from 1"
        )
    return values


def require_readable_size(shape: tuple[int, ...], path: Path) -> None:
    """Raises DataError for an empty volume and for one of more than MAX_VOXELS voxels."""
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise DataError(
            f"{path}: expected 1 to {MAX_VOXELS} voxels, found {_sides(shape)}; crop it or cut it into parts"
        )


def shapes_differ(
    image_path: Path, mask_path: Path, image: tuple[int, ...], mask: tuple[int, ...]
) -> DataError:
    """The error for an image and a mask of different shapes."""
    return DataError(
        f"{mask_path}: expected the shape of {image_path.name}, {_sides(image)}, found {_sides(mask)}; "
        f"export image and mask on the same grid"
    )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)


def medical_package(name: str, *, reader: str) -> Any:
    """The package `name` of the extra `medical`. Raises DataError with the command that installs it."""
    return optional_module(name, wanted=f"reader {reader!r}", extra="medical", error=DataError)
