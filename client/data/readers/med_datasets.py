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

from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample, for_each
from client.data.file_patterns import FilePart, Pair
from client.data.labels import number
from client.data.listing import inside, is_file, naming, require_folder
from client.data.pixels import read_image
from client.data.readers.list_files import read_json
from client.data.readers.pairs import PLAIN, FileDataset
from client.data.readers.sparse_labels import read_pseudo_mask, read_sparse_label


class _Entry(BaseModel):
    image: str
    label: str
    imask: str | None = None


class _MedFile(BaseModel):
    training: list[_Entry]
    test: list[_Entry]
    labels: dict[str, str]


class MedDataset(FileDataset):
    """One task. Ids are the image paths without their ending; group_pattern is searched in them.

    The authors' test list is the test part of the split; the training list is divided into training and
    validation. `labels` works as in a folder: each class, or each of its connected parts, is an instance.

    pseudo_masks: take the labels of the training list (validation included) from imask instead of label;
    only the test then uses the class labels.

    The constructor reads dataset.json and checks that the files exist; its faults are raised together.
    """

    def __init__(self, path: Path, spec: DataSpec = PLAIN) -> None:
        require_folder(path, "dataset.json")
        self._root, self._spec = path, spec
        self._source = path / "dataset.json"
        content = read_json(self._source, _MedFile, "training, test and labels")
        self._classes = len([name for key, name in content.labels.items() if key != "0"])
        listed: list[tuple[FilePart, _Entry]] = [
            *(("train", entry) for entry in content.training),
            *(("test", entry) for entry in content.test),
        ]
        pairs = for_each(lambda item: self._listed(*item), listed)
        twice = [id_ for id_, count in Counter(pair.id for pair in pairs).items() for _ in range(count - 1)]
        if twice:
            raise DataError(
                f"{self._source}: expected each image once in training and test together, found "
                f"{naming(twice, 'repeat')}; an image in both lists would be trained and tested on"
            )
        super().__init__(path, pairs, spec.group_pattern)

    def load(self, sample: Sample) -> LoadedSample:
        """Read one image and its label (or pseudo-mask). Raises DataError naming the file."""
        pair = self.pair(sample)
        file, pseudo = pair.masks[0], self._is_pseudo(pair.part)
        image_HW3 = read_image(pair.image)
        size = image_HW3.shape[0], image_HW3.shape[1]
        values_HW = read_pseudo_mask(file, size) if pseudo else read_sparse_label(file, size, self._classes)
        if not values_HW.any():
            raise DataError(
                f"{file}: expected at least one labelled pixel, found only background; remove the sample "
                f"from {self._source.name}"
            )
        # Pseudo-masks number instances already.
        return LoadedSample(image_HW3, number(values_HW, "instances" if pseudo else self._spec.labels))

    def _is_pseudo(self, part: FilePart | None) -> bool:
        return self._spec.pseudo_masks and part == "train"

    def _listed(self, part: FilePart, entry: _Entry) -> Pair:
        """The files of one entry, which exist. Raises DataError."""
        if self._is_pseudo(part) and entry.imask is None:
            raise DataError(
                f"{self._source}: expected an imask of {entry.image} for pseudo_masks, found none; "
                f"add it or train on the labels"
            )
        wanted = [entry.image, entry.label, *([entry.imask] if self._is_pseudo(part) else [])]
        files = [inside(self._root, name, str(self._source)) for name in wanted]
        if missing := [str(name) for name, file in zip(wanted, files, strict=True) if not is_file(file)]:
            raise DataError(
                f"{self._source}: expected the files it names, found {naming(missing, 'file')} missing; copy "
                f"them into {self._root} or remove the sample"
            )
        return Pair(Path(entry.image).with_suffix("").as_posix(), files[0], (files[-1],), None, part)
