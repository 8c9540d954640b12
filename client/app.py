"""The Flower ClientApp: one institution per SuperNode, several per node in a small simulation.

Every message type goes through `reply`: its answer is guarded (client/outcomes.py), so that nothing
an exception says ever travels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from casam_core.backbones import Backbone, load_backbone
from casam_core.compute import prepare_process, resolve_compute
from casam_core.fingerprint import code_fingerprint
from casam_core.messages import (
    AlignRequest,
    CalibrateRequest,
    EvaluateRequest,
    IdentifyReply,
    IdentifyRequest,
    RouterRequest,
)
from casam_core.payload import Job, Payload
from casam_core.scenario import Scenario
from casam_core.wire import from_records
from client.institution import Institution
from client.outcomes import (
    OtherCodeError,
    PoolingRefusedError,
    UnknownInstitutionError,
    UnknownScenarioError,
    guarded,
)
from client.site import Site, casam_home, hosted_sites

app = ClientApp()

STATE = "casam"
"""Key of the node's state record: the identify request, kept for the run."""


@app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Say who is here; remember the scenario for the requests that follow."""

    def answer(payload: Payload) -> Payload:
        request = IdentifyRequest.of(payload)
        if request.code != code_fingerprint():
            raise OtherCodeError(f"the server runs {request.code}, this node {code_fingerprint()}")
        scenario = Scenario.model_validate_json(request.scenario)
        sites = hosted_sites(scenario, request.run, context.node_config, context.run_config)
        institutions = [institution_at(site, scenario) for site in sites]
        context.state[STATE] = ConfigRecord({"scenario": request.scenario, "run": request.run})
        return IdentifyReply(
            code=code_fingerprint(),
            backbone=institutions[0].backbone.digest if institutions else "",
            compute=institutions[0].backbone.compute.variant if institutions else "",
            institutions={institution.name: institution.holdings() for institution in institutions},
        ).to_payload()

    return reply(message, context, answer)


@app.train("align")
def align(message: Message, context: Context) -> Message:
    """One round of local training."""

    def answer(payload: Payload) -> Payload:
        request = AlignRequest.of(payload)
        others = everybody_else(request.job.institution, context) if request.pooled else []
        return addressed(payload, context).align(request, others).to_payload()

    return reply(message, context, answer)


@app.train("router")
def router(message: Message, context: Context) -> Message:
    """Describe the task's images for the router."""
    return reply(
        message,
        context,
        lambda p: addressed(p, context).describe(RouterRequest.of(p)).to_payload(),
    )


@app.train("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    """Score held-out images under the merged router."""
    return reply(
        message,
        context,
        lambda p: addressed(p, context).calibrate(CalibrateRequest.of(p)).to_payload(),
    )


@app.evaluate("stage")
def evaluate(message: Message, context: Context) -> Message:
    """Score the test images under the bank."""
    return reply(
        message,
        context,
        lambda p: addressed(p, context).evaluate(EvaluateRequest.of(p)).to_payload(),
    )


def reply(message: Message, context: Context, answer: Callable[[Payload], Payload]) -> Message:
    """The guarded answer as a message; detail of a failure goes to the site's log."""
    records = guarded(lambda: answer(from_records(message.content)), lambda: log_of(message, context))
    return Message(records, reply_to=message)


def addressed(payload: Payload, context: Context) -> Institution:
    """The institution a request is for. Raises UnknownScenarioError or UnknownInstitutionError."""
    scenario, sites = remembered(context)
    name = Job.of(payload).institution
    for site in sites:
        if site.institution == name:
            return institution_at(site, scenario)
    raise UnknownInstitutionError(f"{name} is not hosted here")


def everybody_else(name: str, context: Context) -> list[Institution]:
    """All other institutions of a simulation, for joint training. A real site refuses."""
    if "institution" in context.node_config:
        raise PoolingRefusedError("images of institutions are pooled in simulations only")
    scenario, _ = remembered(context)
    run = str(context.state.config_records[STATE]["run"])
    everybody = {"partition-id": 0, "num-partitions": 1}
    sites = hosted_sites(scenario, run, everybody, context.run_config)
    return [institution_at(site, scenario) for site in sites if site.institution != name]


def remembered(context: Context) -> tuple[Scenario, list[Site]]:
    """What identify told this node. Raises UnknownScenarioError when it has not come yet."""
    if STATE not in context.state:
        raise UnknownScenarioError("no identify message was seen in this run")
    state = context.state.config_records[STATE]
    scenario = Scenario.model_validate_json(str(state["scenario"]))
    return scenario, hosted_sites(scenario, str(state["run"]), context.node_config, context.run_config)


def log_of(message: Message, context: Context) -> Path:
    """The log of the institution a request is for; before that is known, the node's."""
    name = message.content.config_records["config"].get("institution")
    if name is not None and STATE in context.state:
        for site in remembered(context)[1]:
            if site.institution == name:
                return site.log
    node = context.node_config
    home = Path(str(node.get("home", casam_home()))).expanduser()
    return home / f"node-{node.get('partition-id', 0)}.log"


@lru_cache(maxsize=64)
def _institution(site: Site, scenario_json: str) -> Institution:
    scenario = site.localised(Scenario.model_validate_json(scenario_json))
    return Institution(site, scenario, ready_backbone(scenario))


def forget_institutions() -> None:
    """Drop what this process keeps of a finished run: datasets and their last images."""
    _institution.cache_clear()


def institution_at(site: Site, scenario: Scenario) -> Institution:
    """One Institution per process, site and scenario, with its dataset opened once."""
    return _institution(site, scenario.canonical_json())


def ready_backbone(scenario: Scenario) -> Backbone:
    """The frozen backbone, loaded once per process, with the process set up for it."""
    compute = resolve_compute(scenario.compute)
    prepare_process(compute)
    return load_backbone(scenario.backbone, compute)
