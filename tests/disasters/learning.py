"""What institutions compute, in microseconds: everything that needs images, the backbone or training.

Every figure follows from the name, the task, the stage, the round and what the request brought, so that
another layer or another bank gives other figures. All that decides, counts, pays, logs and sends stays the
real code.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

import client.dp.noisy_layer
import client.evaluation.canary
import server.run.summary
from casam_core.metrics.continual import ContinualMatrix
from casam_core.metrics.segmentation import ImageScores, InstanceScores
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.forms import weights_of
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    EvaluateReply,
    RouterReply,
    TaskResult,
)
from casam_core.protocol.payload import Job
from casam_core.routing.features import width_of
from casam_core.seeding import derive_seed
from client.data.task_data import TaskData, open_task
from client.evaluation.evaluator import Measured
from client.institution import Institution
from server.run.pictures import matrix_picture

LEARNED: dict[tuple[str, str], TaskData] = {}


def share(*words: object) -> float:
    """A number from 0 to 1 that follows from the words."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def task(self: Institution, name: str) -> TaskData:
    """The site's images of a task; the list of them is made once per process."""
    if (self.name, name) not in LEARNED:
        with patch("client.institution.EmbeddingStore", None):
            LEARNED[self.name, name] = open_task(
                self.site.tasks[name],
                task=name,
                institution=self.name,
                data_root=None,
                store=object.__new__(EmbeddingStore),
                key=self.site.split_key,
                policy=self.site.policy,
            )
    return LEARNED[self.name, name]


def encoded(self: Institution, name: str, part: Any) -> tuple[TaskData, Sequence[Any]]:
    data = self.task(name)
    return data, data.split.part(part)


FIRST: dict[tuple[str, str], Mapping[str, NDArray[np.float32]]] = {}


def align(self: Institution, request: AlignRequest, others: Sequence[Institution] = ()) -> AlignReply:
    job = request.job
    start = request.layer
    if start is None:
        key = (self.scenario.name, job.task)
        if key not in FIRST:
            FIRST[key] = weights_of(self.layer(job.task, None))
        start = FIRST[key]
    step = np.float32(0.01 + 0.01 * share(self.name, job.stage, job.task, job.round))
    images = sum(len(self.task(name).split.train) for name in request.trains_on if name in self.site.tasks)
    return AlignReply({name: array + step for name, array in start.items()}, images)


FEATURES: dict[tuple[str, str], torch.Tensor] = {}


def described(self: Institution, job: Job) -> tuple[torch.Tensor, int]:
    """Features of a task's images."""
    key = (self.name, job.task)
    if key not in FEATURES:
        count = len(self.task(job.task).split.train)
        width = width_of(self.scenario.router.features, self.backbone.geometry.channels)
        generator = torch.Generator().manual_seed(derive_seed(0, *key))
        FEATURES[key] = torch.randn(count, width, generator=generator) + 3 * share(job.task)
    return FEATURES[key], derive_seed(self.scenario.seed, job.stage, "router", job.task)


ROUTERS: dict[tuple[str, str, str, Job], RouterReply] = {}
"""Routers without noise, which follow from the features of a task; each is computed once per process."""


def once(work: Callable[[Institution, Job], RouterReply]) -> Callable[[Institution, Job], RouterReply]:
    """The product's own work, remembered."""

    def remembered(self: Institution, job: Job) -> RouterReply:
        key = (work.__name__, self.scenario.name, self.name, job)
        if key not in ROUTERS:
            ROUTERS[key] = work(self, job)
        return ROUTERS[key]

    remembered.__name__ = work.__name__
    return remembered


router_statistics, fit_router = once(Institution.router_statistics), once(Institution.fit_router)

PICTURES: dict[str, bytes] = {}


def picture(matrix: ContinualMatrix, zero_shot: Mapping[str, float | None]) -> bytes:
    """The product's own picture, drawn once per process for equal figures."""
    figures = repr((matrix, zero_shot))
    if figures not in PICTURES:
        PICTURES[figures] = matrix_picture(matrix, zero_shot)
    return PICTURES[figures]


def evaluate(self: Institution, known: Any) -> EvaluateReply:
    results = {}
    digests = [known.digest_of(name) for name in known.tasks]
    for name in sorted(self.site.tasks):
        images = len(self.task(name).split.test)
        figure = round(share(self.name, name, *digests), 4)
        results[name] = TaskResult(
            images=images, instances=images, iou=figure, dice=figure, biou=figure, biou_official=figure,
            iou_instance=figure, hd95=1.0 if self.scenario.evaluation.hd95 else None,
            routes={name if name in known.tasks else "identity": images},
        )  # fmt: skip
    return EvaluateReply(results, decodes=len(results))


def measured(self: Institution, known: Any, evaluator: object = None) -> dict[str, Measured]:
    digests = [known.digest_of(name) for name in known.tasks]
    found = {}
    for name in sorted(self.site.tasks):
        samples = self.task(name).split.test
        iou = [share(self.name, name, sample.id, *digests) for sample in samples]
        images = [ImageScores(InstanceScores(v, v, v, v, None), 1) for v in iou]
        route = name if name in known.tasks else "identity"
        found[name] = Measured(images, [route] * len(images), iou, [s.id for s in samples], [])
    return found


def train_round(scenario: Any, task: str, layer: torch.nn.Module, *rest: Any) -> None:
    with torch.no_grad():
        for weights in layer.parameters():
            weights += 0.01


def claimed_by(institution: Institution, candidates: object, known: object, images: Mapping[str, int]) -> Any:
    return {name: [False] * len(institution.task(name).split.val) for name in images}


@contextlib.contextmanager
def stubbed() -> Iterator[None]:
    """Inside the block, institutions learn and measure like this."""
    with contextlib.ExitStack() as stack:
        stubs = (task, encoded, align, described, router_statistics, fit_router, evaluate, measured)
        for function in stubs:
            stack.enter_context(patch.object(Institution, function.__name__, function))
        stack.enter_context(patch.object(server.run.summary, "matrix_picture", picture))
        stack.enter_context(patch.object(client.dp.noisy_layer, "train_round", train_round))
        stack.enter_context(patch.object(client.evaluation.canary, "claimed_by", claimed_by))
        stack.enter_context(patch.object(NoiseSource, "from_system", lambda: NoiseSource(bytes(32))))
        yield
