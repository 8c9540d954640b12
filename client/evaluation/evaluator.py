"""Scoring an institution's test images under a bank.

Entries never change, so two kinds of results stay valid for the whole run: the nearest of the entries so far
to an image, with its score, and the mask scores of an (image, selected entry) pair. Each is computed once per
run, one image at a time and at fixed shapes. A stage therefore computes only what changed, and its figures
have the same bits as a full re-evaluation. What is kept grows with the images, not with the entries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.bank.clicking import masks_by_clicks
from casam_core.bank.entry_file import Entry, Head, head_in, read_entry
from casam_core.bank.finding import find
from casam_core.bank.inference import align, decode_masks, entry_layer, route_among
from casam_core.config.scenario import EvaluationSpec
from casam_core.methods import RouteRule
from casam_core.metrics.detection import matched
from casam_core.metrics.intervals import Statistics, estimate
from casam_core.metrics.segmentation import ImageScores, InstanceScores, score_image, score_instance
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.prompts import Prompts, central_points, jittered_boxes, tight_boxes
from casam_core.protocol.messages import TaskResult
from casam_core.routing.decision import IDENTITY, Route
from casam_core.routing.routers import Router
from casam_core.seeding import numpy_generator
from client.data.dataset import LoadedSample, Sample
from client.data.task_data import TaskData
from client.evaluation.results import Results

if TYPE_CHECKING:
    from client.evaluation.own_entries import KnownEntries

ROUTES, MASKS = "routes.jsonl", "masks.jsonl"
"""Files of an institution's results."""

NEAREST = "nearest"
"""Name of a route's result in the file."""

Nearest = tuple[int, str, str, float]
"""Such a result: entries that were scored, their chain, the nearest one's digest, its score."""

NOTHING: Nearest = (0, "", "", math.nan)
"""Of an image that was not scored yet."""

LAYERS = 4
"""Number of layers that a process caches, up to 16 MB each. A few are enough: images of one task follow each
other, and so do the institutions that measure a new entry."""

FROZEN = Route(task=None, nearest=None, score=None)
"""The route to the frozen backbone, under which every image is measured too. Its scores exist since the run's
first evaluation."""


@dataclass(frozen=True)
class Measured:
    """One task's images as they were routed and segmented, in one order. This object never leaves.

    gains: IoU minus frozen SAM's IoU. units: patient or slide, else the image. margins: route score minus
    threshold, which says how unknown an image looks; empty if no router scored the images.
    """

    images: list[ImageScores]
    routes: list[str]
    gains: list[float]
    units: list[str]
    margins: list[float]


@dataclass(frozen=True)
class Answering:
    """The entry that answers for a task. Entries of equal digest are equal, wherever their files are."""

    digest: str
    file: Path = field(compare=False)
    task: str = field(compare=False)


@lru_cache(LAYERS)
def layer_of(answering: Answering, backbone: Backbone) -> AlignmentLayer:
    """The entry's layer, shared by all institutions of this process. Raises BankError."""
    entry = Entry.from_bytes(read_entry(answering.file, answering.digest, answering.task))
    return entry_layer(entry, backbone.geometry.channels, backbone)


def drop_kept_entries() -> None:
    """Clear this process's caches of entries, after a run or after entries were deleted."""
    layer_of.cache_clear()
    head_in.cache_clear()


@dataclass
class Evaluator:
    """Scores images of one institution. `routes`, `masks`: results so far. `decodes`: decoder passes."""

    institution: str
    seed: int
    spec: EvaluationSpec
    features: str
    route_rule: RouteRule
    router: Router
    backbone: Backbone
    routes: Results
    masks: Results
    decodes: int = 0

    def measure(
        self, task: str, data: TaskData, bank: KnownEntries, progress: Callable[[int, int], None]
    ) -> Measured:
        """Route and segment the evaluation split of `task`. progress: called with (images done, total)."""
        samples = data.split.part(self.spec.split)
        thresholds = {head.task: head.threshold for head in bank.heads}
        images, routes, margins, gains = [], [], [], []
        for done, sample in enumerate(samples, 1):
            route = self.routed(task, sample, data, bank)
            image = self.segment(task, sample, data, bank, route)
            frozen = self.segment(task, sample, data, bank, FROZEN)
            images.append(image)
            routes.append(route.name)
            gains.append(image.mean.iou - frozen.mean.iou)
            if route.score is not None and route.nearest is not None:
                threshold = thresholds[route.nearest]
                assert threshold is not None  # a score exists only for entries with a threshold
                margins.append(route.score - threshold)
            progress(done, len(samples))
        units = [sample.group if sample.group is not None else sample.id for sample in samples]
        return Measured(images, routes, gains, units, margins)

    def result(self, task: str, measured: Measured) -> TaskResult:
        """Exact means with their confidence intervals."""
        rng = numpy_generator(self.seed, self.institution, "bootstrap", task)
        statistics = Statistics(
            units=len(set(measured.units)),
            iou=estimate([image.mean.iou for image in measured.images], measured.units, rng),
            gain=estimate(measured.gains, measured.units, rng),
        )
        return replace(summarise(measured.images, measured.routes), statistics=statistics)

    def routed(self, task: str, sample: Sample, data: TaskData, bank: KnownEntries) -> Route:
        """The entry for this image by the method's rule."""
        return self.route_rule(task, bank.tasks, partial(self.route, sample, data, bank))

    def route(self, sample: Sample, data: TaskData, bank: KnownEntries) -> Route:
        """The router's decision for this image: among the nearest of the entries so far and the new ones."""
        key = data.key(sample, self.backbone)
        known: Nearest = self.routes.get(key, NEAREST) or NOTHING
        if bank.chain[known[0] : known[0] + 1] != (known[1],):  # an entry left, or another came in its place
            known = NOTHING
        seen, _, nearest, score = known
        before = bank.routable.get(nearest)
        new = islice(bank.routable.values(), seen, None)

        def score_of(head: Head) -> float:
            if head is before:
                return score
            feature_F = data.feature(sample, self.backbone, self.features)
            return self.router.score(feature_F, bank[head.task].router)

        route = route_among(new if before is None else (before, *new), score_of)
        if seen < len(bank.routable):
            found = bank.digest_of(route.nearest) if route.nearest is not None else ""
            self.routes.put(key, NEAREST, (len(bank.routable), bank.chain[-1], found, route.score))
        return route

    def segment(
        self, task: str, sample: Sample, data: TaskData, bank: KnownEntries, route: Route
    ) -> ImageScores:
        """Scores of one image's instances under the entry of its route."""
        answering = bank.digest_of(route.task) if route.task is not None else IDENTITY
        name = f"{task}/{sample.id}/{data.key(sample, self.backbone)}"
        known = self.masks.get(name, answering)
        if known is not None:
            return ImageScores(InstanceScores(**known["total"]), known["n_instances"])
        layer = self.layer(route, bank)
        seen_CHW = data.seen(sample, self.backbone, layer is not None and layer.sees_pixels)
        scores = self.score(task, sample, data.load(sample), seen_CHW, layer)
        self.decodes += 1
        self.masks.put(name, answering, asdict(scores))
        return scores

    def layer(self, route: Route, bank: KnownEntries) -> AlignmentLayer | None:
        """The alignment layer of the route; None for frozen SAM."""
        if route.task is None:
            return None
        named = Answering(bank.digest_of(route.task), bank.file_of(route.task), route.task)
        return layer_of(named, self.backbone)

    def score(
        self,
        task: str,
        sample: Sample,
        loaded: LoadedSample,
        seen_CHW: Tensor,
        layer: AlignmentLayer | None,
    ) -> ImageScores:
        """Decode and measure one image; `layer` None is the frozen backbone."""
        return score_image(
            [
                score_instance(predicted_HW, loaded.labels_HW == instance, with_hd95=self.spec.hd95)
                for instance, predicted_HW in self.decoded(task, sample, loaded, seen_CHW, layer)
            ]
        )

    def decoded(
        self,
        task: str,
        sample: Sample,
        loaded: LoadedSample,
        seen_CHW: Tensor,
        layer: AlignmentLayer | None,
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(instance, its predicted mask_HW) of every instance that is measured, by instance number.

        With prompts "finder" it is the mask that was found for the instance; an empty one if none was.
        """
        labels_HW = loaded.labels_HW
        rng = numpy_generator(self.seed, self.institution, "evaluate", task, sample.id)
        instances = np.unique(labels_HW[labels_HW > 0]).astype(np.int32)
        chosen = np.sort(rng.permutation(instances)[: self.spec.max_instances])
        z = align(seen_CHW, layer, self.backbone.compute)
        frame = self.backbone.frame(loaded.image_HW3)
        if self.spec.prompts == "finder":
            finder = layer.finder if layer is not None else None
            found = find(self.backbone, finder, layer, seen_CHW, z, frame)
            _, of = matched(found.masks_NHW, found.scores_N, labels_HW)
            missed_HW = np.zeros(labels_HW.shape, bool)
            for instance in map(int, chosen):
                yield instance, found.masks_NHW[of[instance]] if instance in of else missed_HW
            return
        if self.spec.prompts in ("clicks", "box_clicks"):
            box = self.spec.prompts == "box_clicks"
            for instance in map(int, chosen):
                true_HW = labels_HW == instance
                *_, mask_HW = masks_by_clicks(self.backbone, z, layer, true_HW, self.spec.clicks, box=box)
                yield instance, mask_HW
            return
        prompts = self.prompts(labels_HW, chosen, rng)
        parts = decode_masks(self.backbone, z, frame, prompts, layer)
        masks = (mask_HW for masks_nHW, _ in parts for mask_HW in masks_nHW)
        yield from zip(map(int, chosen), masks, strict=True)

    def prompts(
        self, labels_HW: NDArray[np.int32], chosen: NDArray[np.int32], rng: np.random.Generator
    ) -> Prompts:
        """Prompts of the scenario's kind for the chosen instances, in image pixels."""
        if self.spec.prompts == "point":
            return central_points(labels_HW, chosen)
        if self.spec.prompts == "jittered_box":
            return jittered_boxes(labels_HW, chosen, self.spec.jitter, rng)
        return tight_boxes(labels_HW, chosen)


def summarise(images: Sequence[ImageScores], routes: Iterable[str]) -> TaskResult:
    """Mean within each image, then over images; `iou_instance` over instances."""
    means = [image.mean for image in images]
    instances = sum(image.n_instances for image in images)

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    hd95 = [m.hd95 for m in means if m.hd95 is not None]
    return TaskResult(
        images=len(images),
        instances=instances,
        iou=mean([m.iou for m in means]),
        dice=mean([m.dice for m in means]),
        biou=mean([m.biou for m in means]),
        biou_official=mean([m.biou_official for m in means]),
        iou_instance=math.fsum(image.total.iou for image in images) / instances,
        hd95=mean(hd95) if hd95 else None,
        routes=dict(sorted(Counter(routes).items())),
    )
