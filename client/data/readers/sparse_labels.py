"""Label files of the `Med_datasets` layout: sparse NPZ and NPY, never pickled."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from casam_core.errors import DataError
from client.data.labels import paint, whole_labels
from client.data.pixels import MAX_PIXELS, one_line

_SHAPE = re.compile(r"\.\(([0-9, ]+)\)\.npz$")


def read_sparse_label(path: Path, size: tuple[int, int], classes: int) -> NDArray[Any]:
    """Label map of `size` (height, width), 0 background; the classes of a stack become 1, 2, ...

    Of overlapping classes, the smaller one keeps its pixels. classes: number of classes in dataset.json
    without the background. Raises DataError.
    """
    matrix = _load_sparse(path)
    match = _SHAPE.search(path.name)
    if match is None:
        if matrix.shape not in (size, (1, size[0] * size[1])):
            raise DataError(
                f"{path}: expected a shape in the file name, or a matrix of the image's size {size} or of "
                f"one row that holds it, found {matrix.shape}; write the shape as in name.(1, 64, 64, 1).npz"
            )
        return whole_labels(matrix.toarray().reshape(size), path)
    shape = tuple(int(side) for side in match.group(1).replace(" ", "").split(",") if side)
    if shape not in ((classes, *size), (classes, *size, 1)):
        raise DataError(
            f"{path}: expected the shape {(classes, *size, 1)} in the file name ({classes} classes in "
            f"dataset.json, the image's size), found {shape}; correct the name, the image or the classes"
        )
    if matrix.shape[0] * matrix.shape[1] != int(np.prod(shape)):
        raise DataError(
            f"{path}: expected as many values as the shape in its name, found a matrix of {matrix.shape}; "
            f"export the label again"
        )
    masks_CHW = whole_labels(matrix.toarray().reshape(classes, *size), path) > 0
    labels_HW, _ = paint(list(masks_CHW))
    present = [index + 1 for index in range(classes) if masks_CHW[index].any()]
    hidden = [index for index in present if not (labels_HW == index).any()]
    if hidden:
        raise DataError(
            f"{path}: expected every class to own a pixel, found class {hidden[0]} covered by the others; "
            f"correct the label"
        )
    return labels_HW


def read_pseudo_mask(path: Path, size: tuple[int, int]) -> NDArray[Any]:
    """Label map of `size` from NPY, whose background is -1 or 0. Raises DataError."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as fault:
        raise _refused(path, "NPY", fault) from fault
    if (
        not isinstance(stored, np.ndarray)
        or stored.size != size[0] * size[1]
        or stored.dtype.kind not in "iufb"
    ):
        found = f"{stored.dtype} of shape {stored.shape}" if isinstance(stored, np.ndarray) else "an archive"
        raise DataError(
            f"{path}: expected whole numbers of the image's size {size}, found {found}; export it again"
        )
    values = np.array(stored).squeeze()
    if values.shape != size and values.shape != tuple(side for side in size if side != 1):
        raise DataError(
            f"{path}: expected the image's size {size}, found the shape {stored.shape}; export it again"
        )
    values = values.reshape(size)
    return whole_labels(np.where(values == -1, 0, values), path)


def _load_sparse(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_PIXELS * 16:
            raise DataError(
                f"{path}: expected at most {MAX_PIXELS * 16} bytes unpacked, found {unpacked}; "
                f"cut it into tiles"
            )
        # scipy reads without pickle and refuses pickled content.
        matrix = sparse.load_npz(path)
    except DataError:
        raise
    except Exception as fault:
        raise _refused(path, "a sparse matrix (scipy.sparse.save_npz)", fault) from fault
    if len(matrix.shape) != 2 or int(np.prod(matrix.shape, dtype=object)) > MAX_PIXELS * 16:
        raise DataError(
            f"{path}: expected a sparse matrix with two axes, found {matrix.shape}; export it again"
        )
    return matrix


def _refused(path: Path, expected: str, fault: Exception) -> DataError:
    if any(word in str(fault).lower() for word in ("pickle", "python objects")):
        return DataError(
            f"{path}: expected {expected}, found pickled content, which can run code when it is opened; save "
            f"it again as plain numbers"
        )
    return DataError(
        f"{path}: expected {expected}, found a file that cannot be read ({one_line(fault)}); export or copy "
        f"it again"
    )
