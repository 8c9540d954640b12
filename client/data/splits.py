"""Training, validation and test samples of a dataset, by a keyed hash of every unit's id.

The part of a unit depends on its own id, the site's key and the shares, and on nothing else: no other unit
moves when one comes or goes. Differential privacy needs this (docs/privacy.md), and nobody without the key
can know or choose the part of a patient.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from casam_core.config.data_spec import LimitSpec, SplitSpec
from casam_core.errors import DataError
from casam_core.files import make_folder, remove, write_atomic
from casam_core.seeding import derive_seed
from client.data.dataset import Sample

Inseparable = list[Sample]
"""Samples that stay together: one group, or one image whose group is unknown."""

SplitPart = Literal["train", "val", "test"]
PARTS: tuple[SplitPart, ...] = ("train", "val", "test")

SPLIT_KEY = "split.key"
"""File name of a site's key for splits."""
KEY_BYTES = 32


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a dataset, each sorted by id and never empty."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def part(self, name: SplitPart) -> tuple[Sample, ...]:
        """One part by its name."""
        samples: tuple[Sample, ...] = getattr(self, name)
        return samples


def kept_key(home: Path) -> bytes:
    """The site's own key for splits: 32 bytes in `home`/split.key, made at the first use.

    Raises DataError if the file cannot be used: without it every unit would get another part.
    """
    path = home / SPLIT_KEY
    try:
        if not path.exists():
            make_folder(home, 0o700)
            new = home / f".split.key.{secrets.token_hex(4)}"
            write_atomic(new, secrets.token_bytes(KEY_BYTES))  # readable by its owner only
            with contextlib.suppress(FileExistsError):  # another process was first; its key stays
                path.hardlink_to(new)
            remove(new)  # now the key's own name is on the disk, too
        key = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: expected this site's key for splits, found: {fault.strerror}") from fault
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path}: expected {KEY_BYTES} bytes, found {len(key)}; restore the file from a backup"
        )
    return key


def simulated_key(seed: int, institution: str) -> bytes:
    """The key of a simulated institution: the same in every run of the seed."""
    return hashlib.sha256(f"splits\n{derive_seed(seed, institution)}".encode()).digest()


def split_samples(
    samples: tuple[Sample, ...],
    spec: SplitSpec,
    limit: LimitSpec,
    *,
    key: bytes,
    scope: str,
    private: bool = False,
) -> Split:
    """Divide `samples` by the shares of `spec`, then limit each part by `limit`.

    Groups stay whole; a sample without a group is a group of its own. Every group has a place between 0 and 1
    from its keyed hash; the test part has the places below `spec.test`, and validation those below
    `spec.test + spec.val`. So shares are met on average, and a group has the same part in every task of the
    site that has the same shares. If a part is empty, the group whose place is nearest to it moves there.

    With `spec.sequence`, the samples in the order of their ids are cut into train, validation and test
    instead (numbers in ids compare as numbers: frame2 before frame10), as near to the shares as whole groups
    allow; a group has the place of its first image.

    If the dataset itself names its test images (`Sample.part`), exactly these are the test part; `spec.val`
    is then the validation share of the training images, and `spec.test` is not used.

    `spec.use` first leaves out a share of the groups, each drawn by itself.

    The limit of one part does not change the others, and a lower limit keeps a subset of a higher one.

    Args:
        key: the site's key.
        scope: name of this dataset for messages, e.g. "site-a/nuclei".
        private: the policy asks for noise. Then nothing is allowed that makes the part of one unit depend on
            another: no sequence, no limit, no empty part.

    Raises:
        DataError: there are fewer than three groups, or `private` is not possible.
    """
    if private:
        _require_independence(spec, limit, scope)
    if spec.use < 1:
        units = _units(samples, in_sequence=False)
        samples = tuple(sample for unit in units if used(unit, spec, key) for sample in unit)
    if any(sample.part is not None for sample in samples):
        parts = _around_fixed_test(samples, spec, key, scope, private)
    else:
        parts = _three_parts(samples, spec, key, scope, private)
    train, val, test = (
        _cap(part, getattr(limit, name), key) for name, part in zip(PARTS, parts, strict=True)
    )
    return Split(train, val, test)


def _require_independence(spec: SplitSpec, limit: LimitSpec, scope: str) -> None:
    for wrong, found in ((spec.sequence, "split.sequence"), (limit != LimitSpec(), "limit")):
        if wrong:
            raise DataError(
                f"{scope}: expected a split in which no image depends on another, because the policy adds "
                f"noise, found {found}; leave it out, or use a share of the groups (split.use)"
            )


def place_of(unit: Inseparable, key: bytes) -> float:
    """The unit's place, from 0 to below 1."""
    return _hashed(key, _name(unit))


def used(unit: Inseparable, spec: SplitSpec, key: bytes) -> bool:
    """Whether the site uses the unit at all; this depends on nothing but its id, the key and the share."""
    return _hashed(key, f"use {_name(unit)}") < spec.use


def _name(unit: Inseparable) -> str:
    first = unit[0]
    return f"image {first.id}" if first.group is None else f"group {first.group}"


def _hashed(key: bytes, text: str) -> float:
    digest = hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _three_parts(
    samples: tuple[Sample, ...], spec: SplitSpec, key: bytes, scope: str, private: bool
) -> list[list[Inseparable]]:
    units = _units(samples, in_sequence=spec.sequence)
    if len(units) < len(PARTS):
        raise _too_few(units, scope)
    if spec.sequence:
        return _cut(units, spec)
    return _draw(units, {"test": spec.test, "val": spec.val}, key, scope, private)


def _around_fixed_test(
    samples: tuple[Sample, ...], spec: SplitSpec, key: bytes, scope: str, private: bool
) -> list[list[Inseparable]]:
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
        train, val = _draw(rest, {"val": spec.val}, key, scope, private)
    return [train, val, _units(test, in_sequence=spec.sequence)]


def _units(samples: tuple[Sample, ...], *, in_sequence: bool) -> list[Inseparable]:
    """Units in the order of their first sample."""
    ordered = in_time(samples) if in_sequence else sorted(samples, key=lambda sample: sample.id)
    units: dict[tuple[str, str], Inseparable] = {}
    for sample in ordered:
        key = ("image", sample.id) if sample.group is None else ("group", sample.group)
        units.setdefault(key, []).append(sample)
    return list(units.values())


def in_time(samples: tuple[Sample, ...]) -> list[Sample]:
    """The samples of a sequence in the order of their ids, whose numbers compare by their value."""
    return sorted(samples, key=lambda sample: (_with_numbers(sample.id), sample.id))


def _with_numbers(text: str) -> list[tuple[int, str]]:
    """A sort key in which runs of digits compare by their value."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _cut(units: list[Inseparable], spec: SplitSpec) -> list[list[Inseparable]]:
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


def _draw(
    units: list[Inseparable], shares: dict[SplitPart, float], key: bytes, scope: str, private: bool
) -> list[list[Inseparable]]:
    """The parts by the units' places, in the order of PARTS. shares: of every part but training."""
    borders: dict[SplitPart, tuple[float, float]] = {}
    reached = 0.0
    for part, share in shares.items():
        borders[part] = (reached, reached + share)
        reached += share
    borders["train"] = (reached, 1.0)
    places = {id(unit): place_of(unit, key) for unit in units}
    parts: dict[SplitPart, list[Inseparable]] = {part: [] for part in PARTS if part in borders}
    for unit in units:
        place = places[id(unit)]
        parts[next((part for part in shares if place < borders[part][1]), "train")].append(unit)
    for part in borders:
        if parts[part]:
            continue
        if private:
            raise DataError(
                f"{scope}: expected images in each part of the split, because the policy adds noise, "
                f"found none in {part}; add images or raise the part's share"
            )
        low, high = borders[part]
        spare = [unit for other in parts.values() if len(other) > 1 for unit in other]
        nearest = min(spare, key=lambda unit: min(abs(places[id(unit)] - low), abs(places[id(unit)] - high)))
        next(other for other in parts.values() if nearest in other).remove(nearest)
        parts[part].append(nearest)
    return list(parts.values())


def _cap(units: list[Inseparable], most: int | None, key: bytes) -> tuple[Sample, ...]:
    """At most `most` images: those with the lowest hash of their own ids, sorted by id."""
    samples = [sample for unit in units for sample in unit]
    if most is not None:
        samples = sorted(samples, key=lambda sample: _hashed(key, f"limit {sample.id}"))[:most]
    return tuple(sorted(samples, key=lambda sample: sample.id))


def _too_few(units: list[Inseparable], scope: str) -> DataError:
    images = sum(map(len, units))
    grouped = any(sample.group is not None for unit in units for sample in unit)
    found = f"{len(units)} groups with {images} images" if grouped else f"{images} images"
    advice = "add groups, or change group_pattern if it joins too many images" if grouped else "add images"
    return DataError(
        f"{scope}: expected at least 3 {'groups' if grouped else 'images'} so that training, validation and "
        f"test get one each, found {found}, which leaves zero test images; {advice}"
    )
