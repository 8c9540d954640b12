"""Training, validation and test samples of a dataset."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from casam_core.errors import DataError
from casam_core.scenario import LimitSpec, SplitSpec
from casam_core.seeding import numpy_generator
from client.data.dataset import Sample

Unit = list[Sample]
"""Samples that stay together: one group, or one image whose group is unknown."""

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a dataset, each sorted by id and never empty."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]


def split_samples(
    samples: tuple[Sample, ...], spec: SplitSpec, limit: LimitSpec, *, seed: int, scope: str
) -> Split:
    """Divide `samples` by the shares of `spec`, then cap each part by `limit`.

    Groups stay whole; a sample without one is its own. Shares count images and are met as closely as
    whole groups allow. With `spec.sequence` the order of the ids is kept (numbers in them compare as
    numbers: frame2 before frame10) and cut into train, validation and test; a group takes the place of
    its first image. Otherwise groups are drawn at random.

    seed, scope: the run's seed and a name for this dataset, e.g. "site-a/nuclei"; they alone decide the
    draw, not the order of `samples`. Capping one part moves no other, and a lower cap keeps a subset of
    what a higher one keeps. Raises DataError if there are fewer than three groups.
    """
    units = _units(samples, in_sequence=spec.sequence)
    if len(units) < len(PARTS):
        raise _too_few(units, scope)
    if spec.sequence:
        parts = _cut(units, spec)
    else:
        order = numpy_generator(seed, scope, "split").permutation(len(units))
        parts = _draw([units[i] for i in order], spec)
    train, val, test = (
        _cap(part, getattr(limit, name), seed, scope, name) for name, part in zip(PARTS, parts, strict=True)
    )
    return Split(train, val, test)


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
    """Three contiguous ranges; each border is the one nearest to the share, leaving every part a unit."""
    images = np.cumsum([len(unit) for unit in units])
    wanted_train = images[-1] * (1 - spec.val - spec.test)
    wanted_before_test = images[-1] * (1 - spec.test)
    first = _nearest(images, wanted_train, low=1, high=len(units) - 2)
    second = _nearest(images, wanted_before_test, low=first + 1, high=len(units) - 1)
    return [units[:first], units[first:second], units[second:]]


def _nearest(images: np.ndarray[tuple[int], np.dtype[np.int_]], wanted: float, *, low: int, high: int) -> int:
    """How many units, between low and high, hold a number of images nearest to `wanted`."""
    return min(range(low, high + 1), key=lambda count: abs(float(images[count - 1]) - wanted))


def _draw(units: list[Unit], spec: SplitSpec) -> list[list[Unit]]:
    """Fill test, then validation, with the units that bring them nearer to their share; train the rest."""
    total = sum(map(len, units))
    wanted = {"train": total * (1 - spec.val - spec.test), "val": total * spec.val, "test": total * spec.test}
    parts: dict[str, list[Unit]] = {name: [] for name in PARTS}
    for unit in units:
        for name in ("test", "val"):
            have = _images(parts[name])
            if abs(have + len(unit) - wanted[name]) < abs(have - wanted[name]):
                parts[name].append(unit)
                break
        else:
            parts["train"].append(unit)
    for name in PARTS:
        if not parts[name]:
            parts[name].append(_spare_unit(parts, wanted, wanted[name]))
    return [parts[name] for name in PARTS]


def _spare_unit(parts: dict[str, list[Unit]], wanted: dict[str, float], size: float) -> Unit:
    """Take from the part most above its share, of those with two units or more, the unit nearest `size`."""
    donors = [name for name in PARTS if len(parts[name]) > 1]
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
