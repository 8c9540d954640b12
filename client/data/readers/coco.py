"""COCO instance annotations: one JSON file beside its images.

Layout: the folder holds the annotations file; each `file_name` is a file in images/NAME/, images/ or NAME/
(for annotations/instances_NAME.json, as COCO's train2017), beside the annotations, or in the folder itself:
in the first of these that holds the file of the first image. Only `images` and `annotations` of the JSON are
used. Categories are not, because every annotation is an instance.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import DataFaultsError, LoadedSample, Sample
from client.data.file_patterns import Pair
from client.data.labels import fill_polygon, paint
from client.data.listing import inside, is_file, naming, require_folder
from client.data.pixels import read_image
from client.data.readers.list_files import read_json
from client.data.readers.pairs import PLAIN, FileDataset


class _Image(BaseModel):
    id: int
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class _Annotation(BaseModel):
    id: int
    image_id: int
    segmentation: list[list[float]] | dict[str, Any]
    iscrowd: int = 0


class _CocoFile(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]


class CocoDataset(FileDataset):
    """Images of a COCO file that have an instance; ids are the file names without their ending.

    Polygons and uncompressed run lengths are rasterised: a pixel belongs to an instance if its centre
    lies inside. Annotations with iscrowd are skipped, because they outline no single instance; `warnings`
    counts them. Of overlapping instances, the smaller one keeps the pixels. Images without instances are
    excluded; `empty` counts them. group_pattern is searched in the file names.

    The constructor reads the JSON and checks that the files exist; all its faults are raised together.
    """

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        require_folder(path, f"{spec.annotations} and images")
        self._source = inside(path, spec.annotations, str(path))
        content = read_json(self._source, _CocoFile, "COCO instances (images and annotations)")
        _require_consistent(content, self._source)
        instances: dict[int, list[_Annotation]] = {image.id: [] for image in content.images}
        for annotation in content.annotations:
            if not annotation.iscrowd:
                instances[annotation.image_id].append(annotation)
        used = [image for image in content.images if instances[image.id]]
        self.empty = len(content.images) - len(used)
        if crowds := sum(bool(annotation.iscrowd) for annotation in content.annotations):
            self.warnings = (
                f"{crowds} of {len(content.annotations)} annotations are not read, because they are crowds; "
                "where a tool marks single objects so (CVAT: brushed masks), write iscrowd = 0",
            )
        if not used:
            raise DataError(
                f"{self._source}: expected at least one image with an instance, found {crowds} crowds and "
                "nothing else; annotate images, or write iscrowd = 0 for single objects"
            )
        folder = _image_folder(path, self._source, used[0].file_name)
        self._images = {_id(image): (image, instances[image.id]) for image in used}
        files = {
            _id(image): inside(folder, image.file_name, f"{self._source}: image {image.id}") for image in used
        }
        if missing := [file.name for file in files.values() if not is_file(file)]:
            raise DataError(
                f"{folder}: expected the images that {spec.annotations} names, found "
                f"{naming(missing, 'image')} missing; copy them there or remove their entries"
            )
        pairs = [Pair(id_, file, (self._source,), None, None) for id_, file in files.items()]
        super().__init__(path, pairs, spec.group_pattern)

    def load(self, sample: Sample) -> LoadedSample:
        """Read one image and rasterise its instances, in the order of the file. Raises DataError."""
        file = self.pair(sample).image
        image, instances = self._images[sample.id]
        image_HW3 = read_image(file)
        size = (image.height, image.width)
        if image_HW3.shape[:2] != size:
            raise DataError(
                f"{file}: expected {image.width} x {image.height} pixels as {self._source.name} says, found "
                f"{image_HW3.shape[1]} x {image_HW3.shape[0]}; export image and annotations together"
            )
        labels_HW, hidden = paint([_raster(annotation, size, self._source) for annotation in instances])
        if hidden:
            raise DataError(
                f"{self._source}: expected every instance of {image.file_name} to own a pixel, found "
                f"{naming((str(instances[i].id) for i in hidden), 'annotation')} covered by others or "
                f"without a pixel's centre inside; remove them"
            )
        return LoadedSample(image_HW3, labels_HW)


def _image_folder(path: Path, source: Path, first: str) -> Path:
    """Where the images of an annotations file are. first: the file name of one of them."""
    name = source.stem.removeprefix("instances_")
    usual = (path / "images" / name, path / "images", path / name, source.parent, path)
    there = [folder for folder in usual if folder.is_dir()]
    return next((folder for folder in there if is_file(folder / first)), there[0])


def _require_consistent(content: _CocoFile, source: Path) -> None:
    faults = []
    for what, ids in (
        ("image id", [str(image.id) for image in content.images]),
        ("annotation id", [str(annotation.id) for annotation in content.annotations]),
        ("file name without ending", [_id(image) for image in content.images]),
    ):
        if twice := sorted(id_ for id_, count in Counter(ids).items() if count > 1):
            faults.append(
                f"{source}: expected each {what} once, found {naming(twice, 'repeat')}; correct them"
            )
    known = {image.id for image in content.images}
    if lost := [str(a.id) for a in content.annotations if a.image_id not in known]:
        faults.append(
            f"{source}: expected annotations of listed images, found {naming(lost, 'annotation')} of others; "
            f"add the images or remove the annotations"
        )
    if faults:
        raise DataFaultsError(faults)


def _id(image: _Image) -> str:
    return Path(image.file_name).with_suffix("").as_posix() if Path(image.file_name).name else image.file_name


def _raster(annotation: _Annotation, size: tuple[int, int], source: Path) -> NDArray[np.bool_]:
    """(height, width), True inside."""
    segmentation = annotation.segmentation
    where = f"{source}: annotation {annotation.id}"
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, size, where)
    mask_HW = np.zeros(size, np.bool_)
    for numbers in segmentation:
        if len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise DataError(
                f"{where}: expected polygons of three points or more as x, y, x, y, ..., found "
                f"{len(numbers)} numbers, or numbers that are not finite; correct it"
            )
        mask_HW |= fill_polygon(np.array(numbers, np.float64).reshape(-1, 2), size)
    return mask_HW


def _from_run_lengths(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    counts = segmentation.get("counts")
    if isinstance(counts, (str, bytes)):
        raise DataError(
            f"{where}: expected polygons or uncompressed run lengths, found compressed run lengths (RLE); "
            f"convert them, e.g. with pycocotools' decode"
        )
    runs = counts if isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts) else []
    if segmentation.get("size") != list(size) or sum(runs) != size[0] * size[1]:
        raise DataError(
            f"{where}: expected run lengths that fill {size[1]} x {size[0]} pixels, found others; correct it"
        )
    # Runs alternate from background and go down the columns.
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(size, order="F")
