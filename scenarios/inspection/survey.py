"""Read a whole dataset and describe its content and all of its faults; or draw some of its images."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from casam_core.config.data_spec import DataSpec, LimitSpec
from casam_core.errors import DataError
from client.data.dataset import Dataset, LoadedSample, Sample, faults_of
from client.data.listing import naming
from client.data.preview import outlines, private_folder, spread
from client.data.splits import PARTS, Split, split_samples
from scenarios.inspection.doubts import Doubts


@runtime_checkable
class Described(Protocol):
    """Further facts from a reader of files."""

    empty: int
    """Number of excluded images or slices, which hold no label."""

    warnings: tuple[str, ...]
    """Facts that a person should know before sharing these files, one line each."""

    def bits(self, sample: Sample) -> int:
        """Bits per value as the image is stored: 8, 16, 32 or 64. Raises DataError."""


@dataclass
class Survey:
    """The content of one dataset.

    parts: images per part of the split. sides: (width, height) of every image. kinds: images by
    channels and depth, e.g. "gray 16-bit". instances: per image. empty: images excluded because they have no
    label. inverted: images in which one value alone covers most pixels and all corners. duplicates: ids of
    images with the same pixels in the same part. hashes: SHA-256 of size and pixels -> (part, id) of each
    such image. warnings: notes that are not faults.
    """

    images: int = 0
    groups: int = 0
    ungrouped: int = 0
    empty: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    sides: list[tuple[int, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    instances: list[int] = field(default_factory=list)
    inverted: int = 0
    duplicates: list[str] = field(default_factory=list)
    hashes: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def size_range(self) -> str:
        """Smallest and largest image by number of pixels, e.g. `256 x 256 to 512 x 480`."""
        if not self.sides:
            return "none read"
        ordered = sorted(self.sides, key=lambda side: side[0] * side[1])
        first, last = (f"{width} x {height}" for width, height in (ordered[0], ordered[-1]))
        return first if len(set(ordered)) == 1 else f"{first} to {last}"

    @property
    def instance_range(self) -> str:
        """Lowest, highest and median number of instances in an image."""
        if not self.instances:
            return "none read"
        return f"{min(self.instances)} to {max(self.instances)}, median {median(self.instances):g}"


def survey(
    open_: Callable[[], Dataset],
    spec: DataSpec,
    *,
    key: bytes,
    scope: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Survey one dataset. Faults are collected, not raised.

    Args:
        open_: Opens the dataset. If this fails, the survey holds only its faults.
        spec: The dataset's table in the scenario. `spec.limit` is not applied: images beyond the limit can
            be leaks, too.
        key: The site's key, so that the parts are those of the run.
        scope: Names the dataset in messages: INSTITUTION/TASK.
    """
    found = Survey()
    try:
        dataset = open_()
    except DataError as error:
        found.faults.extend(faults_of(error))
        return found
    found.images = len(dataset.samples)
    found.groups = len({sample.group for sample in dataset.samples if sample.group is not None})
    found.ungrouped = sum(sample.group is None for sample in dataset.samples)
    if isinstance(dataset, Described):
        found.empty = dataset.empty
        found.warnings.extend(dataset.warnings)
    part_of = _parts(dataset, spec, key, scope, found)
    doubts = Doubts(spec)
    for done, sample in enumerate(dataset.samples, start=1):
        try:
            loaded = dataset.load(sample)
            bits = dataset.bits(sample) if isinstance(dataset, Described) else 8
        except DataError as error:
            found.faults.extend(faults_of(error))
        else:
            _count(found, loaded, bits)
            doubts.add(loaded)
            found.hashes[pixel_hash(loaded)].append((part_of.get(sample.id, ""), sample.id))
        progress(done, found.images)
    _compare(found)
    found.faults.extend(doubts.faults())
    if 0 < 2 * doubts.blurred <= doubts.images:
        found.warnings.append(f"{doubts.blurred_masks}: look at them")
    return found


def leaks_between(surveys: dict[str, Survey]) -> list[str]:
    """Faults: images of one task that are in different parts of the split at two institutions.

    surveys: the surveys of the task's holders, by institution.
    """
    faults = []
    for (first, one), (second, other) in combinations(surveys.items(), 2):
        shared = [
            f"{a_id} = {b_id}"
            for key in one.hashes.keys() & other.hashes.keys()
            for a_part, a_id in one.hashes[key]
            for b_part, b_id in other.hashes[key]
            if a_part and b_part and a_part != b_part  # no part: the dataset could not be split
        ]
        if shared:
            faults.append(
                f"{first} and {second}: expected different images in different parts, found "
                f"{naming(sorted(shared), 'pair')} with the same pixels; remove one of each"
            )
    return faults


def pixel_hash(loaded: LoadedSample) -> str:
    """SHA-256 of an image's size and pixels; it does not depend on the file format."""
    image = loaded.image_HW3
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _parts(dataset: Dataset, spec: DataSpec, key: bytes, scope: str, found: Survey) -> dict[str, str]:
    """Part by sample id. Adds counts and leaks between groups to `found`."""
    try:
        split: Split = split_samples(dataset.samples, spec.split, LimitSpec(), key=key, scope=scope)
    except DataError as error:
        found.faults.extend(faults_of(error))
        return {}
    part_of: dict[str, str] = {}
    parts_of_group: dict[str, set[str]] = defaultdict(set)
    for part in PARTS:
        samples = getattr(split, part)
        found.parts[part] = len(samples)
        for sample in samples:
            part_of[sample.id] = part
            if sample.group is not None:
                parts_of_group[sample.group].add(part)
    torn = sorted(group for group, parts in parts_of_group.items() if len(parts) > 1)
    if torn:
        found.faults.append(
            f"leakage: expected each group in one part of the split, found {naming(torn, 'group')} in several"
        )
    return part_of


def _count(found: Survey, loaded: LoadedSample, bits: int) -> None:
    image, labels = loaded.image_HW3, loaded.labels_HW
    found.sides.append((image.shape[1], image.shape[0]))
    gray = bool((image == image[..., :1]).all())
    found.kinds[f"{'gray' if gray else 'RGB'} {bits}-bit"] += 1
    instances = int(labels.max())
    found.instances.append(instances)
    corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    found.inverted += instances == 1 and bool(corners.all()) and bool((labels > 0).mean() > 0.5)


def _compare(found: Survey) -> None:
    """Report equal images: a warning within one part, a leak across parts."""
    leaks = []
    for places in found.hashes.values():
        if len(places) < 2:
            continue
        ids = " = ".join(id_ for _, id_ in places)
        if len({part for part, _ in places}) > 1:
            leaks.append(ids)
        else:
            found.duplicates.append(ids)
    if leaks:
        found.faults.append(
            f"leakage: expected different images in training, validation and test, found "
            f"{naming(sorted(leaks), 'set')} with the same pixels; remove the copies or give them one group"
        )
    if found.duplicates:
        found.warnings.append(
            f"{naming(sorted(found.duplicates), 'set')} of images with the same pixels within one part"
        )
    if found.inverted > len(found.instances) / 2:
        found.warnings.append(
            f"in {found.inverted} of {len(found.instances)} masks the only value covers all corners and most "
            "pixels: is it the background, which must be 0?"
        )
    if found.ungrouped:
        found.warnings.append(
            f"{found.ungrouped} images name no patient or slide (group_pattern), so this check cannot see "
            f"whether a patient is in two parts of the split"
        )


def read_everything(
    dataset: Dataset, spec: DataSpec, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Load every sample in order. Raises DataError: the first fault, or masks in doubt.

    progress: called with (samples read, all samples) after each sample.
    """
    samples, doubts = dataset.samples, Doubts(spec)
    for done, sample in enumerate(samples, start=1):
        doubts.add(dataset.load(sample))
        if progress is not None:
            progress(done, len(samples))
    for fault in doubts.faults():
        raise DataError(fault)


def require_clear(dataset: Dataset, spec: DataSpec) -> None:
    """Raise DataError if the dataset's masks are in doubt; read no more images than up to the first clear
    mask."""
    doubts = Doubts(spec)
    if any(doubts.add(dataset.load(sample)) for sample in dataset.samples):
        return
    for fault in doubts.faults():
        raise DataError(fault)


# First those that stand out from red and purple tissue, and from gray.
_COLOURS = np.array(
    [[40, 210, 220], [250, 200, 40], [60, 200, 90], [230, 60, 60], [70, 130, 255], [220, 90, 230]], np.uint8
)


def draw_previews(
    dataset: Dataset,
    folder: Path,
    *,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write `count` overlays, spread evenly over the ids, as PNG; returns the files.

    folder: created with mode 0700; an existing one must give no rights to others. Raises DataError.
    """
    samples = spread(dataset.samples, count)
    private_folder(folder)
    files = []
    for done, sample in enumerate(samples, start=1):
        overlay = overlay_of(dataset.load(sample))
        file = folder / f"{done:03d}-{re.sub(r'[^A-Za-z0-9._-]', '_', sample.id)[-100:]}.png"
        Image.fromarray(overlay).save(file)
        files.append(file)
        progress(done, len(samples))
    return files


def overlay_of(loaded: LoadedSample) -> NDArray[np.uint8]:
    """The image, (height, width, 3) uint8, with each instance's outline inside its border.

    The outline is one pixel wide, and wider in images of 1000 pixels or more. Consecutive labels differ in
    colour.
    """
    labels_HW = loaded.labels_HW
    edges_HW = outlines(labels_HW)
    overlay = loaded.image_HW3.copy()
    overlay[edges_HW] = _COLOURS[(labels_HW[edges_HW] - 1) % len(_COLOURS)]
    return overlay
