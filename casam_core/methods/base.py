"""What a way of learning tasks one after the other decides. Everything else is the same harness.

A method says who trains in a stage, whether one layer is carried from stage to stage, what is added
to the loss, and which entry answers for an image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer, changes_sam
from casam_core.model.training import Batch
from casam_core.routing.decision import Route

SHARED = "shared"
"""The entry of methods that keep one layer for all tasks."""


@dataclass(frozen=True)
class Cohort:
    """Who could train in a stage.

    task: the stage's task. seen: tasks of earlier stages. held: by institution, the tasks of the whole
    stream it has training images of. keeps: institutions whose policy lets them keep samples.
    """

    task: str
    seen: tuple[str, ...]
    held: Mapping[str, Collection[str]]
    keeps: Collection[str]


Trainers = Callable[[Cohort], dict[str, tuple[str, ...]]]
"""Which institutions train, and on which of their tasks."""

RouteRule = Callable[[str, Collection[str], Callable[[], Route]], Route]
"""(true task, tasks in the bank, the router's decision) -> the route that is used."""

Importance = Mapping[str, NDArray[np.float32]]
"""By parameter, how much the tasks learned so far depend on it."""


class Penalty(Protocol):
    """An addition to the loss of one batch."""

    def __call__(self, layer: AlignmentLayer, batch: Batch) -> Tensor:
        """A scalar; gradients flow to the layer."""


PenaltyBuilder = Callable[[AlignmentLayer, Backbone, Importance | None], Penalty]
"""(a frozen layer as the earlier stages left it, backbone, importance) -> penalty."""


def holders(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The stage's own holders, on the stage's task."""
    return {name: (cohort.task,) for name, tasks in cohort.held.items() if cohort.task in tasks}


def by_router(task: str, known: Collection[str], routed: Callable[[], Route]) -> Route:
    """The router decides."""
    return routed()


def by_shared_entry(task: str, known: Collection[str], routed: Callable[[], Route]) -> Route:
    """The one entry there is answers for every image."""
    name = SHARED if SHARED in known else None
    return Route(task=name, nearest=name, score=None)


@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    description: one line. learns: off, nothing is trained. form: of the layer, where the method is about
    one and the scenario's does not count. shared: one layer is carried from stage to
    stage and answers for all. penalty: added to the loss from the second stage on. weighs: each stage
    measures every parameter's importance for the next. pools: one process trains on everybody's
    images, which no consortium may do; a bound for comparison, in simulations only.
    """

    description: str
    learns: bool = True
    form: str | None = None
    shared: bool = False
    trainers: Trainers = holders
    route: RouteRule = by_router
    penalty: PenaltyBuilder | None = None
    weighs: bool = False
    pools: bool = False

    def has_floor(self, form: str) -> bool:
        """Whether a task may keep the identity: it needs an entry of its own, between encoder and decoder."""
        return not self.shared and not changes_sam(form)

    @property
    def routes(self) -> bool:
        """Whether a router takes the decision."""
        return self.learns and self.route is by_router
