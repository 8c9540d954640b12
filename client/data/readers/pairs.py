"""Which image belongs to which masks: by a list, by patterns of names, or by equal names in two folders; and
what all datasets of files share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import Sample
from client.data.file_patterns import Pair, find_pairs
from client.data.listing import files_by_stem, groups_of, require_folder, require_partners
from client.data.pixels import stored_bits
from client.data.readers.list_files import read_list, read_split_lists

PLAIN = DataSpec()
"""images/ and masks/ with the same stems, and every other option at its default."""


class FileDataset:
    """A dataset of files: its samples, and the files of each.

    path: the dataset's folder. pairs: one for each sample. group_pattern: as in DataSpec.
    """

    empty = 0
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, pairs: Iterable[Pair], group_pattern: str | None = None) -> None:
        self.path = path
        self._pairs = {pair.id: pair for pair in grouped(path, pairs, group_pattern)}

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, sorted by id."""
        return tuple(Sample(id_, pair.group, pair.part) for id_, pair in sorted(self._pairs.items()))

    def pair(self, sample: Sample) -> Pair:
        """The files of a sample. Raises DataError for a sample of another dataset."""
        if sample.id not in self._pairs:
            raise DataError(f"{self.path}: expected a sample of this folder, found the id {sample.id!r}")
        return self._pairs[sample.id]

    def bits(self, sample: Sample) -> int:
        """Bits per value of the image file."""
        return stored_bits(self.pair(sample).image)


def listed(path: Path, suffixes: frozenset[str], names: str, spec: DataSpec) -> list[Pair]:
    """The pairs of a reader, sorted by id. Raises DataError.

    suffixes: file endings that the reader knows, in lower case. names: the same for messages.
    """
    if spec.list_file is not None:
        found = read_list(path, spec.list_file)
    elif spec.patterns is not None:
        parts = read_split_lists(path, spec.split_lists) if spec.split_lists is not None else None
        found = find_pairs(path, *spec.patterns, suffixes, parts)
    else:
        found = same_stems(path, suffixes, names)
    return grouped(path, found, spec.group_pattern)


def masks_are_classes(spec: DataSpec) -> bool:
    """Whether the masks of an image are its classes; otherwise several masks are instances."""
    return "{class}" in (spec.mask_files or "")


def same_stems(path: Path, suffixes: frozenset[str], names: str) -> list[Pair]:
    """Files with the same stem in `path`/images and `path`/masks, sorted.

    Hidden files and files that are no images (README, .txt, .json) are ignored. Raises DataError; one error
    lists the missing partners in both folders.
    """
    require_folder(path, "images/ and masks/")
    images = files_by_stem(path / "images", suffixes, names)
    masks = files_by_stem(path / "masks", suffixes, names)
    if not images:
        raise DataError(f"{path / 'images'}: expected at least one {names}, found none; put images there")
    require_partners(
        path,
        [images[stem].name for stem in images.keys() - masks.keys()],
        [masks[stem].name for stem in masks.keys() - images.keys()],
        ("images/{id}.*", "masks/{id}.*"),
        "a list_file",
    )
    return [Pair(stem, images[stem], (masks[stem],), None, None) for stem in sorted(images)]


def grouped(path: Path, pairs: Iterable[Pair], group_pattern: str | None) -> list[Pair]:
    """The pairs with the groups that the regular expression finds in their ids, if there is one."""
    found = list(pairs)
    if group_pattern is None:
        return found
    groups = groups_of(path, [pair.id for pair in found], group_pattern)
    return [replace(pair, group=group) for pair, group in zip(found, groups, strict=True)]
