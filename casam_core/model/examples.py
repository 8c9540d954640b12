"""Training images, and on an accelerator a place for them where no step waits for a file or a copy.

Before the first step, `held` copies embeddings and labels to the device, of as many images as fit into half
of its free memory; several threads read them. The other images are read from the store at every step, as
all are on a processor. What is held is freed with the object, at the end of an institution's round.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from casam_core.model.backbones import Backbone
from casam_core.model.compute import LOADERS, Compute, read_ahead
from casam_core.model.frame import frame_of
from casam_core.model.prompts import Places

SHARE = 0.5
"""Of the device's free memory, for images; the rest is for the steps."""

MOST = 1 << 16
"""Instance numbers below it are counted; to sort all pixels takes ten times as long."""


@dataclass(frozen=True)
class Shown:
    """The labels of an image in a frame of side S.

    visible_N: numbers of the instances that are left there. places: where each instance is in the image.
    """

    labels_SS: Tensor
    visible_N: NDArray[np.int32]
    places: Places


@dataclass(frozen=True)
class Example:
    """One training image.

    seen_CHW: the input of the layer: the frozen embedding z_CHW, or the pixels x_3SS. labels_HW: the
    instances at the image's resolution. known: its labels in a frame, if they were worked out before.
    """

    seen_CHW: Tensor
    labels_HW: NDArray[np.int32]
    known: Shown | None = None

    def shown(self, side: int) -> Shown:
        """The labels in a frame of this side."""
        if self.known is not None and len(self.known.labels_SS) == side:
            return self.known
        labels_HW = self.labels_HW.astype(np.int32, copy=False)  # held ones have one byte each
        labels_SS = frame_of(labels_HW, side).resize_labels(labels_HW)
        return Shown(torch.from_numpy(labels_SS), numbers_in(labels_SS), ndimage.find_objects(labels_HW))


class Examples(Protocol):
    """Training images by index; a list is enough for a few images.

    Every step reads its images again, so that memory does not grow with their number.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Example: ...


def numbers_in(labels_SS: NDArray[np.int32]) -> NDArray[np.int32]:
    """The instance numbers in labels, ascending."""
    if labels_SS.max() < MOST:
        counts = np.bincount(labels_SS.ravel())
        counts[0] = 0  # background
        return np.flatnonzero(counts).astype(np.int32)
    return np.unique(labels_SS[labels_SS > 0])


@dataclass(frozen=True)
class HeldExamples:
    """examples, some of which are on the device: those in `held`, by index."""

    examples: Examples
    held: dict[int, Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.held[i] if i in self.held else self.examples[i]


def held(examples: Examples, backbone: Backbone, side: int) -> Examples:
    """The examples as the steps on this device want them. side: of the frame of their targets."""
    if isinstance(examples, HeldExamples):
        return examples
    room = room_on(backbone.compute.device)
    return examples if room == 0 else holding(examples, backbone.compute, side, room)


def room_on(device: str) -> int:
    """Bytes for images on the device; a processor needs none."""
    if not device.startswith("cuda"):
        return 0
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(SHARE * free)


def holding(examples: Examples, compute: Compute, side: int, room: int) -> HeldExamples:
    """As many of the first examples as fit into `room` bytes, on the device.

    side: of the frame, in pixels.
    """
    kept: dict[int, Example] = {}
    enough = room_on(compute.device) // 2  # other processes may fill the device at the same time
    for i, example in enumerate(loaded(examples, side)):
        room -= size_of(example)
        if room < 0 or room_on(compute.device) < enough:
            break
        shown = example.known
        assert shown is not None  # `loaded` worked it out
        on_device = Shown(compute.moved(shown.labels_SS), shown.visible_N, shown.places)
        kept[i] = Example(compute.moved(example.seen_CHW), example.labels_HW, on_device)
    return HeldExamples(examples, kept)


def loaded(examples: Examples, side: int) -> Iterator[Example]:
    """The examples in order, in as little memory as is exact; a few are read ahead."""

    def read(i: int) -> Example:
        example = examples[i]
        shown = example.shown(side)
        labels_SS = torch.from_numpy(compact(shown.labels_SS.numpy()))
        half = example.seen_CHW.half()  # embeddings from a store of half precision lose nothing
        seen_CHW = half if torch.equal(half.float(), example.seen_CHW) else example.seen_CHW
        return Example(seen_CHW, compact(example.labels_HW), Shown(labels_SS, shown.visible_N, shown.places))

    with ThreadPoolExecutor(min(LOADERS, os.cpu_count() or 1)) as threads:
        yield from read_ahead(threads, read, len(examples), 2 * LOADERS)


def compact(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same numbers in one byte each, if they are small; typed as labels, as they are used as such."""
    return cast(NDArray[np.int32], labels.astype(np.uint8)) if labels.max(initial=0) < 256 else labels


def size_of(example: Example) -> int:
    """Bytes of the embedding and of both kinds of labels."""
    known = example.known.labels_SS.nbytes if example.known is not None else 0
    return example.seen_CHW.nbytes + example.labels_HW.nbytes + known
