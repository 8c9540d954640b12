"""Ways of learning tasks one after the other, in one harness. A method is one file and one line here."""

from __future__ import annotations

from casam_core.config.scenario import AlignmentSpec, Scenario
from casam_core.errors import ScenarioError
from casam_core.methods import (
    casam,
    decoder,
    ewc,
    fedavg,
    frozen,
    joint,
    lora,
    lwf,
    oracle,
    replay,
    sequential,
)
from casam_core.methods.base import SHARED, Cohort, Importance, Method, Penalty
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer, build_layer
from casam_core.seeding import derive_seed

METHODS: dict[str, Method] = {
    "casam": casam.METHOD,
    "oracle": oracle.METHOD,
    "frozen": frozen.METHOD,
    "sequential": sequential.METHOD,
    "ewc": ewc.METHOD,
    "lwf": lwf.METHOD,
    "replay": replay.METHOD,
    "fedavg": fedavg.METHOD,
    "decoder": decoder.METHOD,
    "lora": lora.METHOD,
    "joint": joint.METHOD,
}


def method_of(name: str) -> Method:
    """The method a scenario names. Raises ScenarioError listing the known ones."""
    if name not in METHODS:
        raise ScenarioError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]


def alignment_of(scenario: Scenario, task: str = "") -> AlignmentSpec:
    """The Alignment Layer of a task, in the form that the method is about; one for all if it shares one."""
    method = method_of(scenario.method)
    spec = scenario.alignment if method.shared else scenario.alignments.get(task, scenario.alignment)
    return spec if method.form is None else spec.model_copy(update={"form": method.form})


def layer_seed(scenario: Scenario, task: str) -> int:
    """All holders start from the same layer: its seed names the task, not the institution."""
    first = SHARED if method_of(scenario.method).shared else task
    return derive_seed(scenario.seed, "layer", first)


def first_layer(
    scenario: Scenario, task: str, channels: int, backbone: Backbone | None = None
) -> AlignmentLayer:
    """What every holder of `task` starts from. Raises ScenarioError (see build_layer)."""
    return build_layer(alignment_of(scenario, task), channels, layer_seed(scenario, task), backbone)


__all__ = [
    "METHODS",
    "SHARED",
    "Cohort",
    "Importance",
    "Method",
    "Penalty",
    "alignment_of",
    "first_layer",
    "method_of",
]
