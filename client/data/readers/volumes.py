"""Pairs of volume files (image and mask) as a dataset of slices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError, optional_module
from client.data.dataset import LoadedSample, Sample, for_each
from client.data.file_patterns import Pair
from client.data.labels import layered, whole_labels
from client.data.listing import naming
from client.data.pixels import as_rgb, percentile_range, to_uint8, window_range
from client.data.readers.pairs import PLAIN, FileDataset, listed, masks_are_classes

KEPT_BYTES = 2**29
"""Decoded volumes that stay in memory, 512 MiB: training loads slices in random order."""

MAX_VOXELS = 2**30
"""Largest volume read, 1024 slices of 1024 x 1024; otherwise a small packed file could fill the memory."""

SAME_PLACE_MM = 0.05
"""Tolerance for places in space: tools differ in their last digits; voxels are 0.2 mm or larger."""


class VolumeDataset(FileDataset):
    """Every labelled slice of the volumes in `path`/images and `path`/masks (same stems), D slices of H x W.

    Slices without a label are excluded, because a sample holds one instance or more; `empty` counts them. A
    volume without any label is a fault. Ids are the file's stem and the slice's index from 0, e.g.
    `case01-z042`, so that slices keep their order. A volume is a group: a split never divides it.
    group_pattern may join the volumes of one patient. With the mark {class} a volume has a mask for each
    class, of which some may be empty.

    The constructor reads every mask, because masks show which slices are labelled. It raises the faults of
    all volumes together.

    A format gives its file endings in lower case (`suffixes`, and `kinds` for messages) and the four methods
    below, which raise DataError.
    """

    suffixes: ClassVar[frozenset[str]]
    kinds: ClassVar[str]

    def image(self, path: Path) -> NDArray[np.uint8]:
        """uint8 (D, H, W) or RGB (D, H, W, 3)."""
        raise NotImplementedError

    def mask(self, path: Path) -> NDArray[Any]:
        """Whole numbers >= 0, (D, H, W)."""
        raise NotImplementedError

    def grid(self, path: Path) -> tuple[tuple[int, ...], NDArray[np.float64] | None]:
        """The sides of a volume, and the places of its corners in mm, (8, 3), if the header says them."""
        raise NotImplementedError

    def bits_in(self, path: Path) -> int:
        """Bits per stored value of an image file."""
        raise NotImplementedError

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        self.spec = spec
        volumes = listed(path, self.suffixes, self.kinds, spec)
        several = [pair.id for pair in volumes if len(pair.masks) > 1]
        if several and not masks_are_classes(spec):
            raise DataError(
                f"{path}: expected one mask for each volume, found several for {naming(several, 'volume')}; "
                "write {class} in mask_files where the name of a class is"
            )
        self._images = Recent()
        self._masks = Recent()
        self.empty = 0
        self._index: dict[str, int] = {}
        slices = []
        for pair, labelled in zip(volumes, for_each(self._labelled_slices, volumes), strict=True):
            for index in labelled:
                id_ = f"{pair.id}-z{index:03d}"
                self._index[id_] = index
                slices.append(replace(pair, id=id_, group=pair.group or pair.id))
        super().__init__(path, slices)

    def load(self, sample: Sample) -> LoadedSample:
        """One slice: uint8 RGB and int32 labels 1..n. Raises DataError naming the file."""
        pair, index = self.pair(sample), self._index[sample.id]
        image_DHW = self._images.get(pair.image, self.image)
        layers_HW = []
        for mask_path in pair.masks:
            values_DHW = self._masks.get(mask_path, self._read_mask)
            _require_same_shape(pair.image, mask_path, image_DHW.shape[:3], values_DHW.shape)
            layers_HW.append(values_DHW[index])
        if not any(values_HW.any() for values_HW in layers_HW):
            raise DataError(
                f"{pair.masks[0]}: expected labels in slice {index}, as when the dataset was opened, found "
                f"none; leave the files alone while they are read"
            )
        labels_HW, hidden = layered(layers_HW, self.spec.labels)
        if hidden:
            raise DataError(
                f"{pair.masks[hidden[0]]}: expected a visible instance in slice {index}, found one below "
                "those of other classes; correct the masks"
            )
        return LoadedSample(as_rgb(image_DHW[index]), labels_HW)

    def bits(self, sample: Sample) -> int:
        """Bits per voxel of the image file."""
        return self.bits_in(self.pair(sample).image)

    def _labelled_slices(self, pair: Pair) -> list[int]:
        found: set[int] = set()
        for mask_path in pair.masks:
            self._require_same_grid(pair.image, mask_path)
            values_DHW = self._masks.get(mask_path, self._read_mask)
            found |= set(np.flatnonzero(values_DHW.any(axis=(1, 2))).tolist())
        if not found:
            raise DataError(
                f"{pair.masks[0]}: expected at least one labelled voxel, found only background (0); label "
                "the volume, or leave the pair out of the data"
            )
        self.empty += len(values_DHW) - len(found)
        return sorted(found)

    def _require_same_grid(self, image_path: Path, mask_path: Path) -> None:
        """Reads the headers only."""
        (image, image_at_83), (mask, mask_at_83) = self.grid(image_path), self.grid(mask_path)
        _require_same_shape(image_path, mask_path, image, mask)
        if image_at_83 is not None and mask_at_83 is not None:
            require_same_place(image_path.name, mask_path, image_at_83, mask_at_83)

    def _read_mask(self, path: Path) -> NDArray[Any]:
        values_DHW = self.mask(path)
        return values_DHW.astype(np.min_scalar_type(int(values_DHW.max())))


class ScanDataset(VolumeDataset):
    """Scans (CT, MR) with gray voxels (X, Y, Z), cut across one stored axis, DataSpec.slice_axis.

    Voxels stay in stored order and are never resampled or rotated to anatomical axes; the rows of a slice
    are the higher of the two remaining axes. Image and mask are cut in the same way. DataSpec.window is
    [centre, width] in the volume's units (Hounsfield units for CT); by default each volume's own
    percentiles.
    """

    def voxels(self, path: Path, *, as_labels: bool) -> NDArray[Any]:
        """All voxels (X, Y, Z) with the header's scaling; float32 unless they are labels."""
        raise NotImplementedError

    def image(self, path: Path) -> NDArray[np.uint8]:
        """Gray slices."""
        voxels = self.voxels(path, as_labels=False)
        return gray_slices(voxels, path, self.spec.slice_axis, self.spec.window)

    def mask(self, path: Path) -> NDArray[Any]:
        """Slices of labels."""
        return across(whole_labels(self.voxels(path, as_labels=True), path), self.spec.slice_axis)


def corners_83(columns: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of a volume's corners in mm; a small rotation has its largest effect there.

    columns: (3, 3), the vectors in mm along the three sides of the whole volume. origin: (3,), its first
    voxel.
    """
    ends_83 = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    return ends_83 @ columns.T + origin


def require_same_place(
    image: str, mask_path: Path, image_at_83: NDArray[np.float64], mask_at_83: NDArray[np.float64]
) -> None:
    """Raises DataError if a corner of the mask lies more than SAME_PLACE_MM from the image's."""
    apart = float(np.abs(image_at_83 - mask_at_83).max())
    if not apart <= SAME_PLACE_MM:
        raise DataError(
            f"{mask_path}: expected the place of {image}, found one that lies {apart:.2f} mm away at a "
            "corner; resample the mask to the image's grid"
        )


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


def require_readable_size(shape: tuple[int, ...], path: Path) -> None:
    """Raises DataError for an empty volume and for one of more than MAX_VOXELS voxels."""
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise DataError(
            f"{path}: expected 1 to {MAX_VOXELS} voxels, found {_sides(shape)}; crop it or cut it into parts"
        )


def _require_same_shape(
    image_path: Path, mask_path: Path, image: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    if image != mask:
        raise DataError(
            f"{mask_path}: expected the shape of {image_path.name}, {_sides(image)}, found {_sides(mask)}; "
            f"export image and mask on the same grid"
        )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)


def medical_package(name: str, *, reader: str) -> Any:
    """The package `name` of the extra `medical`. Raises DataError with the command that installs it."""
    return optional_module(name, wanted=f"reader {reader!r}", extra="medical", error=DataError)
