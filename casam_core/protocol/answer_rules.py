"""What each kind of answer may hold: names, dtypes, shapes and ranges, derived from the scenario.

Both ends read the same list: the guard before anything leaves (client/release/guard.py), the server before
anything
counts (server/defence/admission.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from casam_core.config.policy import Policy
from casam_core.config.scenario import AlignmentSpec, RouterSpec, Scenario
from casam_core.methods import SHARED, alignment_of, method_of
from casam_core.model.backbones import Backbone
from casam_core.model.forms import build_layer, changes_sam
from casam_core.protocol.messages import Holding
from casam_core.protocol.payload import Job
from casam_core.routing.decision import IDENTITY
from casam_core.routing.features import pool
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import HISTOGRAM_BINS
from casam_core.routing.unknown import BINS

MANY = 2**53
"""Above every count; still exact as a float."""

WIDEST = 1e7
"""Above every threshold: histograms of scores end at 4 million (casam_core.routing.threshold)."""

LEAST_VARIANCE = 1e-30
"""Of a feature."""

Range = tuple[float, float, bool]
"""(lowest, highest, whole numbers only)"""

Numbers = Mapping[str, Range]


@dataclass(frozen=True)
class Sender:
    """What both sides know of who answers. channels: of an embedding. backbone: None at the server, which
    then does not know the arrays of layers that change SAM itself."""

    scenario: Scenario
    holdings: Mapping[str, Holding]
    policy: Policy
    channels: int
    backbone: Backbone | None

    def images(self, part: str) -> int:
        """All images of a split, over tasks: methods may train on several."""
        return sum(getattr(holding, part) for holding in self.holdings.values())


@dataclass(frozen=True)
class Form:
    """One array. shape: at most as long in `free` dimensions, exactly so in all others. least: lowest value.
    total: highest sum."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    free: tuple[int, ...] = ()
    least: float | None = None
    total: float | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape may pass."""
        return len(shape) == len(self.shape) and all(
            found <= most if axis in self.free else found == most
            for axis, (found, most) in enumerate(zip(shape, self.shape, strict=True))
        )


@dataclass(frozen=True)
class Arrays:
    """One group of arrays. complete: none of them may be missing. open: arrays of any name and shape, as long
    as they are finite floats."""

    shapes: Mapping[str, Form]
    complete: bool = True
    open: bool = False


@dataclass(frozen=True)
class Rules:
    """What one kind of answer may hold; nothing of it has to be there. arrays: a group may be any one of
    several."""

    arrays: Mapping[str, tuple[Arrays, ...]] = field(default_factory=dict)
    numbers: Mapping[str, Numbers] = field(default_factory=dict)


def align_rules(sender: Sender, job: Job) -> Rules:
    """A layer of the scenario's form, and where the method asks for it, its importance."""
    method = method_of(sender.scenario.method)
    layer = layer_arrays(alignment_of(sender.scenario, job.task), sender.channels, sender.backbone)
    arrays = {"layer": (layer,)}
    if method.weighs:
        shapes = {name: replace(form, least=0.0) for name, form in layer.shapes.items()}
        arrays["importance"] = (replace(layer, shapes=shapes),)
    images = MANY if method.pools else sender.images("train")
    return Rules(arrays, {"align": {"num-examples": (1, images, True)}})


def router_rules(sender: Sender, job: Job) -> Rules:
    """A finished router with its threshold, or summaries of all images and of every fold."""
    spec = sender.scenario.router
    finished, summary = router_arrays(sender)
    folds = {f"fold-{k}": (summary,) for k in range(spec.folds)}
    numbers: Numbers = {
        "num-examples": (0, sender.images("train"), True),
        "threshold": (-WIDEST, WIDEST, False),
    }
    return Rules({"router": (finished, summary), **folds}, {"router-facts": numbers})


def router_arrays(sender: Sender) -> tuple[Arrays, Arrays]:
    """(finished, summary) of the scenario's router."""
    spec = sender.scenario.router
    width = len(pool(torch.zeros(sender.channels, 1, 1), spec.features))
    finished, summary = router_forms(spec.model_dump_json(), width)
    return Arrays(finished), Arrays(summary)


def calibrate_rules(sender: Sender, job: Job) -> Rules:
    """One histogram of held-out scores."""
    most = sender.holdings[job.task].train
    counts = Form(np.dtype(np.int64), (HISTOGRAM_BINS,), least=0, total=most)
    return Rules({"histogram": (Arrays({"counts": counts}),)})


def evaluate_rules(sender: Sender, job: Job) -> Rules:
    """Per task held here: means in their ranges, routes to known names, intervals, one histogram."""
    noisy = sender.policy.metrics == "noisy"
    numbers: dict[str, dict[str, Range]] = {} if noisy else {"work": {"decodes": (0, MANY, True)}}
    if sender.policy.canaries:
        numbers["canary"] = {"failed": (0, 1, True)}
    margins: dict[str, Form] = {}
    share: Range = (0, 1, False)
    for task, holding in sender.holdings.items():
        images = getattr(holding, sender.scenario.evaluation.split)
        most = images * sender.scenario.evaluation.max_instances
        numbers[f"score.{task}"] = {
            "images": (0, images, True),
            "instances": (0, most, True),
            **dict.fromkeys(("iou", "dice", "biou", "biou_official", "iou_instance"), share),
            "hd95": (0, 1e6, False),
        }
        if noisy:
            exact = numbers[f"score.{task}"]
            numbers[f"score.{task}"] = {key: exact[key] for key in ("images", "iou", "dice")}
        names = {IDENTITY, SHARED, *sender.scenario.stream}
        numbers[f"route.{task}"] = dict.fromkeys(names, (0, images, True))
        if noisy:
            continue
        numbers[f"statistics.{task}"] = {
            "units": (0, images, True),
            **{f"iou.{key}": share for key in ("mean", "sd", "low", "high")},
            **{f"gain.{key}": (-1, 1, False) for key in ("mean", "low", "high")},
            "gain.sd": (0, 2, False),
        }
        margins[task] = Form(np.dtype(np.int64), (BINS,), least=0, total=images)
    return Rules({"margins": (Arrays(margins, complete=False),)}, numbers)


RULES: dict[str, Callable[[Sender, Job], Rules]] = {
    "train.align": align_rules,
    "train.router": router_rules,
    "train.calibrate": calibrate_rules,
    "evaluate.stage": evaluate_rules,
}


def rules_for(kind: str, sender: Sender, job: Job) -> Rules:
    """The list for one kind of message; empty for a kind that is not known."""
    return RULES[kind](sender, job) if kind in RULES else Rules()


@lru_cache(maxsize=8)
def layer_arrays(spec: AlignmentSpec, channels: int, backbone: Backbone | None) -> Arrays:
    """Names, dtypes and shapes of a layer; open where a part of SAM is trained and SAM is not at hand."""
    if backbone is None and changes_sam(spec.form):
        return Arrays({}, open=True)
    layer = build_layer(spec, channels, 0, backbone)
    return Arrays(
        {name: Form(np.dtype(np.float32), tuple(value.shape)) for name, value in layer.state_dict().items()}
    )


@lru_cache(maxsize=8)
def router_forms(spec_json: str, width: int) -> tuple[dict[str, Form], dict[str, Form]]:
    """(finished, summary) of a router, from one made of noise that is as large as any can be."""
    spec = RouterSpec.model_validate_json(spec_json).model_copy(update={"epochs": 1})
    router = build_router(spec)
    noise = torch.randn(width + 2, width, generator=torch.Generator().manual_seed(0))
    summary = router.sufficient_statistics(noise, 0)
    return forms_of(router.fit(summary).items()), forms_of(summary.items())


def forms_of(
    arrays: Iterable[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]],
) -> dict[str, Form]:
    """A dimension called K counts directions, of which a router of few images has fewer. Variances are above
    zero: with others no institution could compute a score."""
    return {
        name: Form(
            array.dtype,
            array.shape,
            free=(0,) if name.rpartition("_")[2].startswith("K") else (),
            least=LEAST_VARIANCE if name.startswith("diagonal") else None,
        )
        for name, array in arrays
    }
