"""Many small tasks, to measure everything around the model: small images, one colour per task.

With the tiny backbone an image costs milliseconds, and a router can distinguish the colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import ComputeSpec
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import prepare_process, resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from client.data.dataset import LoadedSample, Sample
from client.data.splits import Split
from client.data.task_data import TaskData

SIDE = 64
NOISE = 10.0


@dataclass(frozen=True)
class ColouredImages:
    """A dataset (client.data.dataset.Dataset) of square images with two instances each. number: its seed."""

    number: int
    images: int

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(Sample(f"{i:06d}") for i in range(self.images))

    def load(self, sample: Sample) -> LoadedSample:
        rng = np.random.default_rng([self.number, int(sample.id)])
        colour = np.random.default_rng([self.number]).uniform(40, 215, 3)
        image_HW3 = rng.normal(colour, NOISE, (SIDE, SIDE, 3))
        labels_HW = np.zeros((SIDE, SIDE), np.int32)
        for instance, left in ((1, 4), (2, 36)):
            top, height = rng.integers(4, 30), rng.integers(10, 28)
            labels_HW[top : top + height, left : left + 24] = instance
        image_HW3[labels_HW > 0] += 25
        return LoadedSample(np.clip(image_HW3, 0, 255).astype(np.uint8), labels_HW)


def coloured_task(number: int, *, train: int, test: int, store: EmbeddingStore) -> TaskData:
    """One institution's images of task `number`."""
    dataset = ColouredImages(number, train + test)
    return TaskData(dataset, Split(dataset.samples[:train], (), dataset.samples[train:]), store)


@lru_cache(maxsize=1)
def tiny(threads: int) -> Backbone:
    """The tiny backbone, with the process set up for it."""
    compute = resolve_compute(ComputeSpec(device="cpu", threads=threads))
    prepare_process(compute)
    return load_backbone(BackboneSpec(name="tiny"), compute)


def fresh_store(folder: Path) -> EmbeddingStore:
    """A new, empty store."""
    return EmbeddingStore(folder / "embeddings")
