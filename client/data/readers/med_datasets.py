"""The layout of the CA-SAM authors' `Med_datasets`: one folder per task, with a dataset.json.

dataset.json holds `training` and `test` (lists of samples) and `labels` (class names by number, "0"
the background). A sample names its `image` (PNG, JPEG or TIFF), its `label` and, in training, its
`imask`, as paths inside the folder.

label: scipy.sparse.save_npz of the class masks. The file name contains their shape before .npz, e.g.
`label/a.(3, 256, 216, 1).npz`: classes without background, height, width, 1; a value above 0 belongs
to the class. Without a shape in the name, a sparse matrix of the image's size, or one row with all its
pixels row by row, is read as a label map. imask: NPY of the image's size; -1 and 0 are background, each
value from 1 is one pseudo-instance.

This follows the layout's description; it was not compared with the authors' own files. Pickled content and
other layouts are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from casam_core.errors import DataError
from client.data.damage import for_each
from client.data.dataset import LoadedSample, Sample
from client.data.labels import Meaning, number
from client.data.listing import groups_of, inside, naming, require_folder
from client.data.pixels import read_image, stored_bits
from client.data.readers.list_files import read_json
from client.data.readers.sparse_labels import read_pseudo_mask, read_sparse_label


class _Entry(BaseModel):
    image: str
    label: str
    imask: str | None = None


class _File(BaseModel):
    training: list[_Entry]
    test: list[_Entry]
    labels: dict[str, str]


class MedDataset:
    """One task. Ids are the image paths without their ending; group_pattern is searched in them.

    The authors' test list is the test part of the split; the training list is divided into training and
    validation. `labels` works as in a folder: each class, or each of its connected parts, is an instance.

    pseudo_masks: take the labels of the training list (validation included) from imask instead of label;
    only the test then uses the class labels.

    The constructor reads dataset.json and checks that the files exist; its faults are raised together.
    """

    empty = 0
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        labels: Meaning = "instances",
        group_pattern: str | None = None,
        pseudo_masks: bool = False,
    ) -> None:
        require_folder(path, "dataset.json")
        self._path, self._labels, self._pseudo_masks = path, labels, pseudo_masks
        self._source = path / "dataset.json"
        content = read_json(self._source, _File, "training, test and labels")
        self._classes = len([name for key, name in content.labels.items() if key != "0"])
        listed: list[tuple[Literal["train", "test"], _Entry]] = [
            *(("train", entry) for entry in content.training),
            *(("test", entry) for entry in content.test),
        ]
        for_each(lambda item: self._require_files(*item), listed)
        self._entries: dict[str, tuple[Literal["train", "test"], _Entry]] = {}
        twice = []
        for part, entry in listed:
            id_ = Path(entry.image).with_suffix("").as_posix()
            if id_ in self._entries:
                twice.append(id_)
            self._entries[id_] = part, entry
        if twice:
            raise DataError(
                f"{self._source}: expected each image once in training and test together, found "
                f"{naming(twice, 'repeat')}; an image in both lists would be trained and tested on"
            )
        ids = sorted(self._entries)
        groups = groups_of(path, ids, group_pattern)
        self._samples = tuple(
            Sample(id_, group, self._entries[id_][0]) for id_, group in zip(ids, groups, strict=True)
        )

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Training and test images, sorted by id, each marked with its part."""
        return self._samples

    def load(self, sample: Sample) -> LoadedSample:
        """Read one image and its label (or pseudo-mask). Raises DataError naming the file."""
        part, entry = self._entry(sample)
        pseudo = self._pseudo_masks and part == "train"
        image_HW3 = read_image(self._path / entry.image)
        size = image_HW3.shape[0], image_HW3.shape[1]
        if pseudo:
            file = self._path / str(entry.imask)
            values_HW = read_pseudo_mask(file, size)
        else:
            file = self._path / entry.label
            values_HW = read_sparse_label(file, size, self._classes)
        if not values_HW.any():
            raise DataError(
                f"{file}: expected at least one labelled pixel, found only background; remove the sample "
                f"from {self._source.name}"
            )
        # Pseudo-masks number instances already.
        return LoadedSample(image_HW3, number(values_HW, "instances" if pseudo else self._labels))

    def bits(self, sample: Sample) -> int:
        """Bits per value of the image file."""
        return stored_bits(self._path / self._entry(sample)[1].image)

    def _entry(self, sample: Sample) -> tuple[Literal["train", "test"], _Entry]:
        if sample.id not in self._entries:
            raise DataError(f"{self._path}: expected a sample of this folder, found the id {sample.id!r}")
        return self._entries[sample.id]

    def _require_files(self, part: Literal["train", "test"], entry: _Entry) -> None:
        wanted = [entry.image, entry.label]
        if part == "train" and self._pseudo_masks:
            if entry.imask is None:
                raise DataError(
                    f"{self._source}: expected an imask of {entry.image} for pseudo_masks, found none; "
                    f"add it or train on the labels"
                )
            wanted.append(entry.imask)
        missing = [name for name in wanted if not inside(self._path, name, str(self._source)).is_file()]
        if missing:
            raise DataError(
                f"{self._source}: expected the files it names, found {naming(missing, 'file')} missing; copy "
                f"them into {self._path} or remove the sample"
            )
