"""YOLO segmentation: images/ and labels/, or patterns; one text file per image, one polygon per line.

A line is `class x1 y1 x2 y2 ...` with coordinates as shares of the image's width and height.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.file_patterns import Pair, find_pairs
from client.data.labels import fill_polygon, paint
from client.data.listing import files_by_stem, naming, require_folder, visible_entries
from client.data.pixels import SUFFIXES, read_image, reading
from client.data.readers.pairs import PLAIN, FileDataset

Polygon = NDArray[np.float64]
"""xy_K2 in [0, 1]."""


class YoloDataset(FileDataset):
    """Images with at least one polygon; ids are the stems.

    A pixel belongs to an instance if its centre lies inside the polygon. Classes are not used, because every
    line is an instance. Of overlapping instances, the smaller one keeps the pixels. Images without a text
    file or with an empty one are excluded; `empty` counts them. Under patterns of names every image has a
    text file. A line of four numbers is a box, not a mask, and is refused. group_pattern is searched in the
    ids.

    The constructor reads the text files; `load` reads the images. Both raise DataError.
    """

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        found = find_pairs(path, *spec.patterns, SUFFIXES | {".txt"}) if spec.patterns else same_stems(path)
        drawn = {pair.id: [line for file in pair.masks for line in read_polygons(file)] for pair in found}
        self._polygons = {id_: polygons for id_, polygons in drawn.items() if polygons}
        self.empty = len(found) - len(self._polygons)
        if not self._polygons:
            raise DataError(f"{path}: expected at least one polygon, found none; label images")
        super().__init__(path, [pair for pair in found if drawn[pair.id]], spec.group_pattern)

    def load(self, sample: Sample) -> LoadedSample:
        """Read one image and rasterise its polygons, in the order of the lines. Raises DataError."""
        pair = self.pair(sample)
        image_HW3 = read_image(pair.image)
        height, width = image_HW3.shape[:2]
        masks = [
            fill_polygon(xy_K2 * (width, height), (height, width)) for xy_K2 in self._polygons[sample.id]
        ]
        labels_HW, hidden = paint(masks)
        if hidden:
            raise DataError(
                f"{pair.masks[0]}: expected every polygon to own a pixel, found "
                f"{naming((str(i + 1) for i in hidden), 'polygon')} covered by others or without a pixel's "
                f"centre inside; remove them"
            )
        return LoadedSample(image_HW3, labels_HW)


def same_stems(path: Path) -> list[Pair]:
    """The images in `path`/images, each with the text file of its stem in `path`/labels, if there is one.

    Raises DataError.
    """
    require_folder(path, "images/ and labels/")
    require_folder(path / "labels", "one .txt per image")
    images = files_by_stem(path / "images", SUFFIXES, "PNG, JPEG or TIFF")
    texts = {file.stem: file for file in visible_entries(path / "labels") if file.suffix.lower() == ".txt"}
    orphans = [texts[stem].name for stem in sorted(texts.keys() - images.keys() - {"classes"})]
    if orphans:
        raise DataError(
            f"{path}: expected an image for every text file, found {naming(orphans, 'file')} without; "
            f"add the images or remove the files"
        )
    masks = {stem: (texts[stem],) if stem in texts else () for stem in images}
    return [Pair(stem, images[stem], masks[stem], None, None) for stem in sorted(images)]


def read_polygons(path: Path) -> list[Polygon]:
    """The polygons of one text file. Raises DataError naming the line."""
    with reading(path, "a text file", "export it again"):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [read_line(line, f"{path}: line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def read_line(line: str, where: str) -> Polygon:
    """xy_K2 of one line. Raises DataError."""
    try:
        numbers = [float(word) for word in line.split()[1:]]
    except ValueError as fault:
        raise DataError(f"{where}: expected a class and numbers, found {line[:40]!r}; correct it") from fault
    if len(numbers) == 4:
        raise DataError(f"{where}: expected a polygon, found a box; export segments instead of boxes")
    if len(numbers) < 6 or len(numbers) % 2:
        raise DataError(
            f"{where}: expected three points or more as x y x y ..., found {len(numbers)} numbers; correct it"
        )
    xy_K2 = np.array(numbers).reshape(-1, 2)
    if not ((xy_K2 >= 0) & (xy_K2 <= 1)).all():
        raise DataError(f"{where}: expected shares of width and height from 0 to 1, found others; correct it")
    return xy_K2
