"""Training, validation and test samples of a dataset."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from casam_core.config.data_spec import LimitSpec, SplitSpec
from casam_core.errors import DataError
from casam_core.seeding import numpy_generator
from client.data.dataset import Sample

Unit = list[Sample]
"""Samples that stay together: one group, or one image whose group is unknown."""

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a dataset, each sorted by id and never empty."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def part(self, name: Part) -> tuple[Sample, ...]:
        """One part by its name."""
        samples: tuple[Sample, ...] = getattr(self, name)
        return samples


def split_samples(
    samples: tuple[Sample, ...], spec: SplitSpec, limit: LimitSpec, *, seed: int, scope: str
) -> Split:
    """Divide `samples` by the shares of `spec`, then limit each part by `limit`.

    Groups stay whole; a sample without a group is a group of its own. Shares count images and are met as
    closely as whole groups allow. With `spec.sequence`, the samples in the order of their ids are cut into
    train, validation and test (numbers in ids compare as numbers: frame2 before frame10); a group has the
    place of its first image. Otherwise groups are drawn at random.

    If the dataset itself names its test images (`Sample.part`), exactly these are the test part; `spec.val`
    is then the validation share of the training images, and `spec.test` is not used.

    The limit of one part does not change the others, and a lower limit keeps a subset of a higher one.

    Args:
        seed, scope: the run's seed and a name of this dataset, e.g. "site-a/nuclei"; the random draw depends
            on them only, not on the order of `samples`.

    Raises:
        DataError: there are fewer than three groups.
    """
    if any(sample.part is not None for sample in samples):
        parts = _around_fixed_test(samples, spec, seed, scope)
    else:
        parts = _three_parts(samples, spec, seed, scope)
    train, val, test = (
        _cap(part, getattr(limit, name), seed, scope, name) for name, part in zip(PARTS, parts, strict=True)
    )
    return Split(train, val, test)


def _three_parts(samples: tuple[Sample, ...], spec: SplitSpec, seed: int, scope: str) -> list[list[Unit]]:
    units = _units(samples, in_sequence=spec.sequence)
    if len(units) < len(PARTS):
        raise _too_few(units, scope)
    if spec.sequence:
        return _cut(units, spec)
    shares = {"train": 1 - spec.val - spec.test, "val": spec.val, "test": spec.test}
    return _draw(_shuffled(units, seed, scope), shares)


def _around_fixed_test(
    samples: tuple[Sample, ...], spec: SplitSpec, seed: int, scope: str
) -> list[list[Unit]]:
    """The dataset's own test part; its training part is divided into training and validation by groups."""
    unmarked = sum(sample.part is None for sample in samples)
    if unmarked:
        raise DataError(
            f"{scope}: expected every image to be marked as training or test, found {unmarked} unmarked of "
            f"{len(samples)}; a dataset names the part of all its images or of none"
        )
    test = tuple(sample for sample in samples if sample.part == "test")
    rest = _units(tuple(sample for sample in samples if sample.part == "train"), in_sequence=spec.sequence)
    if not test or len(rest) < 2:
        raise DataError(
            f"{scope}: expected one test image and 2 training groups or more in the dataset's own lists (one "
            f"group validates), found {len(test)} test images and {len(rest)} training groups; add images"
        )
    tested = {sample.group for sample in test if sample.group is not None}
    shared = sorted({unit[0].group for unit in rest if unit[0].group in tested} - {None}, key=str)
    if shared:
        raise DataError(
            f"{scope}: expected each group in one of the dataset's own lists, found {len(shared)} in "
            f"training and test (first: {shared[0]!r}); correct the lists or group_pattern"
        )
    if spec.sequence:
        images = np.cumsum([len(unit) for unit in rest])
        border = _nearest(images, images[-1] * (1 - spec.val), low=1, high=len(rest) - 1)
        train, val = rest[:border], rest[border:]
    else:
        train, val = _draw(_shuffled(rest, seed, scope), {"train": 1 - spec.val, "val": spec.val})
    return [train, val, _units(test, in_sequence=spec.sequence)]


def _shuffled(units: list[Unit], seed: int, scope: str) -> list[Unit]:
    return [units[i] for i in numpy_generator(seed, scope, "split").permutation(len(units))]


def _units(samples: tuple[Sample, ...], *, in_sequence: bool) -> list[Unit]:
    """Units in the order of their first sample."""
    ordered = sorted(samples, key=lambda sample: sample.id)
    if in_sequence:
        ordered.sort(key=lambda sample: _with_numbers(sample.id))
    units: dict[tuple[str, str], Unit] = {}
    for sample in ordered:
        key = ("image", sample.id) if sample.group is None else ("group", sample.group)
        units.setdefault(key, []).append(sample)
    return list(units.values())


def _with_numbers(text: str) -> list[tuple[int, str]]:
    """A sort key in which runs of digits compare by their value."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"([0-9]+)", text) if piece
    ]


def _cut(units: list[Unit], spec: SplitSpec) -> list[list[Unit]]:
    """Three contiguous ranges, cut as near to the shares as possible; every part gets at least one unit."""
    images = np.cumsum([len(unit) for unit in units])
    wanted_train = images[-1] * (1 - spec.val - spec.test)
    wanted_before_test = images[-1] * (1 - spec.test)
    first = _nearest(images, wanted_train, low=1, high=len(units) - 2)
    second = _nearest(images, wanted_before_test, low=first + 1, high=len(units) - 1)
    return [units[:first], units[first:second], units[second:]]


def _nearest(images: np.ndarray[tuple[int], np.dtype[np.int_]], wanted: float, *, low: int, high: int) -> int:
    """The number of units, between low and high, whose images together are nearest to `wanted`."""
    return min(range(low, high + 1), key=lambda count: abs(float(images[count - 1]) - wanted))


def _draw(units: list[Unit], shares: dict[str, float]) -> list[list[Unit]]:
    """Put each unit into test or validation if this brings the part nearer to its share, else into training.

    shares: by part, in the order of PARTS; the result has the same order.
    """
    total = sum(map(len, units))
    wanted = {name: total * share for name, share in shares.items()}
    parts: dict[str, list[Unit]] = {name: [] for name in shares}
    filled_first = [name for name in reversed(PARTS[1:]) if name in shares]
    for unit in units:
        for name in filled_first:
            have = _images(parts[name])
            if abs(have + len(unit) - wanted[name]) < abs(have - wanted[name]):
                parts[name].append(unit)
                break
        else:
            parts["train"].append(unit)
    for part in shares:
        if not parts[part]:
            parts[part].append(_spare_unit(parts, wanted, wanted[part]))
    return list(parts.values())


def _spare_unit(parts: dict[str, list[Unit]], wanted: dict[str, float], size: float) -> Unit:
    """Remove and return the unit nearest to `size` from the part that exceeds its share most."""
    donors = [name for name in parts if len(parts[name]) > 1]
    donor = parts[max(donors, key=lambda name: _images(parts[name]) - wanted[name])]
    best = min(range(len(donor)), key=lambda i: abs(len(donor[i]) - size))
    return donor.pop(best)


def _images(units: list[Unit]) -> int:
    return sum(map(len, units))


def _cap(units: list[Unit], most: int | None, seed: int, scope: str, name: str) -> tuple[Sample, ...]:
    samples = sorted((sample for unit in units for sample in unit), key=lambda sample: sample.id)
    if most is not None and most < len(samples):
        kept = numpy_generator(seed, scope, "limit", name).permutation(len(samples))[:most]
        samples = [samples[i] for i in sorted(kept)]
    return tuple(samples)


def _too_few(units: list[Unit], scope: str) -> DataError:
    images = _images(units)
    grouped = any(sample.group is not None for unit in units for sample in unit)
    found = f"{len(units)} groups with {images} images" if grouped else f"{images} images"
    advice = "add groups, or change group_pattern if it joins too many images" if grouped else "add images"
    return DataError(
        f"{scope}: expected at least 3 {'groups' if grouped else 'images'} so that training, validation and "
        f"test get one each, found {found}, which leaves zero test images; {advice}"
    )
