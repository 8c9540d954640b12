"""One task's images at one institution: the dataset, its split, its embeddings."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.data_spec import DataSpec
from casam_core.config.policy import Policy
from casam_core.config.site_file import TaskDescription
from casam_core.errors import DataError
from casam_core.model.backbones import Backbone
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Example
from casam_core.privacy.units import Units, units_of
from casam_core.protocol.messages import Holding
from casam_core.routing.features import pool
from client.data.dataset import Dataset, LoadedSample, Sample
from client.data.open import open_dataset
from client.data.splits import Split, SplitPart, split_samples

RECENT_IMAGES, RECENT_FEATURES = 32, 8192
"""Numbers of decoded images and of pooled features that a process keeps for all its institutions, at most
about 100 MB and 16 MB. Decoding a file again at every training step costs more, and so does pooling a test
image again for every new entry."""


@dataclass(eq=False)
class TaskData:
    """One task's images here. Images are loaded when needed; the names of their embeddings stay in memory.

    keys: known names of embeddings, by image. division: digest of everything that decides which part
    a unit is in, except the unit's own id.
    """

    dataset: Dataset
    split: Split
    store: EmbeddingStore
    division: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def load(self, sample: Sample) -> LoadedSample:
        """One image with its labels. Raises DataError."""
        return recent(self, sample)

    @property
    def holding(self) -> Holding:
        """Image counts per split."""
        return Holding(len(self.split.train), len(self.split.val), len(self.split.test))

    def embedding(self, sample: Sample, backbone: Backbone) -> tuple[str, Tensor]:
        """(key, z_CHW) of one image; it is encoded only if the store has no intact file of it."""
        known = self.keys.get(sample.id)
        if known is not None:
            with contextlib.suppress(KeyError):
                return known, self.store.load(known)
        key, z_CHW = self.store.embed(self.load(sample).image_HW3, backbone)
        self.keys[sample.id] = key
        return key, z_CHW

    def key(self, sample: Sample, backbone: Backbone) -> str:
        """The name of one image's embedding, which is in the store when this function returns."""
        return self.keys[sample.id] if self._stored(sample) else self.embedding(sample, backbone)[0]

    def encode(
        self, samples: tuple[Sample, ...], backbone: Backbone, progress: Callable[[int, int], None]
    ) -> None:
        """Make sure that the store has the embeddings of all `samples`.

        progress: called with (done, total).
        """
        if backbone.compute.together == 1:
            for done, sample in enumerate(samples, 1):
                self.key(sample, backbone)
                progress(done, len(samples))
            return
        new = [sample for sample in samples if not self._stored(sample)]
        stored = self.store.fill([partial(self._image, sample) for sample in new], backbone)
        for done, (i, key) in enumerate(stored, len(samples) - len(new) + 1):
            self.keys[new[i].id] = key
            progress(done, len(samples))

    def _image(self, sample: Sample) -> NDArray[np.uint8]:
        return self.load(sample).image_HW3

    def _stored(self, sample: Sample) -> bool:
        known = self.keys.get(sample.id)
        return known is not None and known in self.store

    def seen(self, sample: Sample, backbone: Backbone, pixels: bool) -> Tensor:
        """A layer's input for one image: z_CHW, or the preprocessed pixels x_3SS if `pixels`."""
        if pixels:
            return backbone.preprocess(self.load(sample).image_HW3)
        return self.embedding(sample, backbone)[1]

    def feature(self, sample: Sample, backbone: Backbone, kind: str) -> Tensor:
        """f_F: the router's feature of one image. kind: casam_core.routing.features."""
        with contextlib.suppress(KeyError):
            return recent_feature(Stored(self.key(sample, backbone), self.store), kind)
        return pool(self.embedding(sample, backbone)[1], kind)

    def features(self, samples: tuple[Sample, ...], backbone: Backbone, kind: str) -> Tensor:
        """f_NF: the router's features of `samples`."""
        return torch.stack([self.feature(sample, backbone, kind) for sample in samples])


@dataclass(frozen=True)
class StoredExamples:
    """Training images of one or several tasks; each is read from disk when it is needed.

    pixels: the layer sees pixels, not embeddings (`AlignmentLayer.sees_pixels`).
    """

    items: Sequence[tuple[TaskData, Sample]]
    backbone: Backbone
    pixels: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Example:
        data, sample = self.items[i]
        return Example(data.seen(sample, self.backbone, self.pixels), data.load(sample).labels_HW)


@lru_cache(RECENT_IMAGES)
def recent(data: TaskData, sample: Sample) -> LoadedSample:
    """Load one image; the last RECENT_IMAGES stay in memory."""
    return data.dataset.load(sample)


@dataclass(frozen=True)
class Stored:
    """An embedding in a store. Embeddings of equal keys are equal, wherever their files are."""

    key: str
    store: EmbeddingStore = field(compare=False)


@lru_cache(RECENT_FEATURES)
def recent_feature(stored: Stored, kind: str) -> Tensor:
    """f_F; the last RECENT_FEATURES stay in memory. Raises KeyError if the file is damaged or gone."""
    return pool(stored.store.load(stored.key), kind)


def open_task(
    spec: TaskDescription,
    *,
    task: str,
    institution: str,
    data_root: Path | None,
    store: EmbeddingStore,
    key: bytes,
    policy: Policy,
) -> TaskData:
    """The institution's images of `task`, split by `key`. Raises DataError."""
    dataset = open_dataset(spec, data_root=data_root, seed=spec.seed, institution=institution)
    split = divide(dataset.samples, spec, key, f"{institution}/{task}", policy)
    return TaskData(dataset=dataset, split=split, store=store, division=division_of(spec, key))


def divide(samples: tuple[Sample, ...], spec: DataSpec, key: bytes, scope: str, policy: Policy) -> Split:
    """The split of a dataset that the policy allows. scope: names the dataset in messages.

    Raises DataError: the dataset is too small, or the policy protects groups and an image has none.
    """
    unnamed = sum(sample.group is None for sample in samples)
    if policy.budget.unit == "group" and unnamed:
        raise DataError(
            f"{scope}: expected a group for every image, because the policy's budget.unit is 'group', found "
            f"{unnamed} of {len(samples)} images without one; correct group_pattern"
        )
    return split_samples(samples, spec.split, spec.limit, key=key, scope=scope, private=policy.adds_noise)


def division_of(spec: DataSpec, key: bytes) -> str:
    """The digest of the key, the reader, the patterns and lists, the grouping, the shares and the limit."""
    rules = {"key": hashlib.sha256(b"split key" + key).hexdigest()} | spec.model_dump(
        mode="json", include={"reader", "group_pattern", "split", "limit"}
    )
    if spec.patterns is not None:  # its absence keeps the digests of earlier ledgers
        rules["patterns"] = list(spec.patterns)
    if spec.list_file is not None:
        rules["list_file"] = spec.list_file
    if spec.split_lists is not None:
        rules["split_lists"] = spec.split_lists
    if spec.annotations != DataSpec.model_fields["annotations"].default:  # it decides the ids of images
        rules["annotations"] = spec.annotations
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def private_units(data: TaskData, policy: Policy, part: SplitPart = "train") -> Units:
    """The units that the policy protects in one split of a task, and the public counts of them."""
    samples, budget = data.split.part(part), policy.budget
    ids, groups = [sample.id for sample in samples], [sample.group for sample in samples]
    return units_of(ids, groups, budget.unit, budget.contribution)
