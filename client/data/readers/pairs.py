"""Which image belongs to which masks: by a list, by patterns of names, or by equal names in two folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from casam_core.config.data_spec import DataSpec
from client.data.file_patterns import Pair, find_pairs
from client.data.listing import groups_of, paired_files
from client.data.readers.list_files import read_list, read_split_lists


@dataclass(frozen=True)
class FileRules:
    """How the files of a dataset are found: the keys of a data table with the same names.

    patterns: of images and of masks; None for images/ and masks/ with the same stems.
    """

    patterns: tuple[str, str] | None = None
    list_file: str | None = None
    split_lists: str | None = None
    group_pattern: str | None = None

    @property
    def mask_is_class(self) -> bool:
        """Whether the masks of an image are its classes; otherwise several masks are instances."""
        return self.patterns is not None and "{class}" in self.patterns[1]


SAME_STEMS = FileRules()
"""images/ and masks/ with the same stems."""


def rules_of(spec: DataSpec) -> FileRules:
    """The rules in a data table."""
    return FileRules(spec.patterns, spec.list_file, spec.split_lists, spec.group_pattern)


def listed(path: Path, suffixes: frozenset[str], names: str, rules: FileRules) -> list[Pair]:
    """The pairs of a reader, sorted by id. Raises DataError.

    suffixes: file endings that the reader knows, in lower case. names: the same for messages.
    """
    if rules.list_file is not None:
        found = read_list(path, rules.list_file)
    elif rules.patterns is not None:
        parts = read_split_lists(path, rules.split_lists) if rules.split_lists is not None else None
        found = find_pairs(path, *rules.patterns, suffixes, parts)
    else:
        found = [
            Pair(stem, image, (mask,), None, None)
            for stem, (image, mask) in paired_files(path, suffixes, names).items()
        ]
    return _grouped(path, found, rules.group_pattern)


def _grouped(path: Path, pairs: Sequence[Pair], group_pattern: str | None) -> list[Pair]:
    """The pairs with the groups that the regular expression finds in their ids, if there is one."""
    if group_pattern is None:
        return list(pairs)
    groups = groups_of(path, [pair.id for pair in pairs], group_pattern)
    return [replace(pair, group=group) for pair, group in zip(pairs, groups, strict=True)]
