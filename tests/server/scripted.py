"""A scripted federation: a Flower Grid whose institutions answer in milliseconds, without images or training.

All above the grid is the server's own code. An institution answers honestly; what stands in its script it
does instead, once per request of that kind, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from numpy.typing import NDArray

from casam_core.bank.bank import bank_digest
from casam_core.bank.entry_file import Entry, digest_of
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.methods import first_layer, method_of
from casam_core.model.backbones import channels_of
from casam_core.model.forms import weights_of
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    EvaluateReply,
    EvaluateRequest,
    Forecast,
    ForgetReply,
    ForgetRequest,
    Holding,
    IdentifyReply,
    IdentifyRequest,
    RouterReply,
    RouterRequest,
    Sender,
    TaskResult,
    compares,
    folds_of,
    identify_statement,
    purge_statement,
    tasks_asked,
)
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.register import (
    REGISTER,
    SIGNING_KEY,
    Keys,
    Register,
    new_signing_key,
    public_hex,
    signature_of,
)
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    SETUP,
    SHARE_KEYS,
    SIGNATURE,
    SIGNATURES,
    SIGNERS,
    SecureReply,
    SecureRequest,
    Sum,
    keys_digest,
    share_of,
)
from casam_core.protocol.wire import deserialise, from_records, packed, serialise, to_records, unpacked
from casam_core.routing.features import width_of
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import HISTOGRAM_BINS
from client.secagg.member import as_flower_sends, flower
from scenarios.engines.inprocess import FIRST_NODE, InProcessGrid, set_id
from server.federation.federation import Federation
from server.run.run_folder import RunFolder
from server.stream import run_stream
from tests.conftest import phantom, tiny_table

Behaviour = Callable[[Payload], "Payload | Error | None"]
"""From the honest answer to what is sent: another payload, an error of the node, or nothing."""


def refuses(outcome: str) -> Behaviour:
    """A refusal or a failure by its word."""
    return lambda honest: Payload({"outcome": outcome, "incident": "beef"})


def dies(honest: Payload) -> Error:
    """The process is gone; the SuperLink says so."""
    return Error(0, "the process died")


def stays_silent(honest: Payload) -> None:
    """No answer ever comes."""


def boosts(factor: float) -> Behaviour:
    """Sends a layer that moved too far."""
    return lambda honest: replace(
        honest, arrays={"layer": {k: v * np.float32(factor) for k, v in honest.arrays["layer"].items()}}
    )


def says(**config: Any) -> Behaviour:
    """Other settings in an honest answer."""
    return lambda honest: replace(honest, config={**honest.config, **config})


@dataclass
class Site:
    """One scripted institution. holds: by task, images to train, validate and test on. gone_at: the stage in
    which its node disappears, as soon as it is asked something. weights: of the layer that it sends, whatever
    it starts from. copy: tasks and digests of its bank. mirror: folder of entries."""

    name: str
    holds: Mapping[str, tuple[int, int, int]]
    policy: Policy = field(default_factory=Policy)
    script: dict[str, list[Behaviour]] = field(default_factory=dict)
    gone_at: int | None = None
    iou: float = 0.5
    weights: Mapping[str, NDArray[np.float32]] | None = None
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    copy: dict[str, str] = field(default_factory=dict)
    mirror: Path | None = None
    asked: list[tuple[str, Payload]] = field(default_factory=list)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    context: Context = field(default_factory=lambda: Context(1, 1, {}, RecordDict(), {}))
    connected: bool = True
    keys: dict[str, list[bytes]] = field(default_factory=dict)

    def kinds(self, stage: int | None = None) -> list[str]:
        """What it was asked, in order, of one stage or of all; the directory's question does not count."""
        return [
            kind
            for kind, payload in self.asked
            if kind != "query.identify" and stage in (None, payload.config["stage"])
        ]


class ScriptedGrid(InProcessGrid):
    """Nodes are scripted institutions, numbered in the scenario's order."""

    def __init__(self, scenario: Scenario, sites: Iterable[Site]) -> None:
        super().__init__(0, {})
        self.scenario, self.run_name = scenario, ""
        self.sites = {FIRST_NODE + number: site for number, site in enumerate(sites)}

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, site in self.sites.items() if site.connected]

    def _deliver(self, message: Message) -> str:
        message_id, kind = set_id(message), message.metadata.message_type
        site = self.sites[message.metadata.dst_node_id]
        asked = from_records(deserialise(serialise(message.content)))
        site.asked.append((kind, asked))
        stage = asked.config.get("stage")
        if site.gone_at is not None and isinstance(stage, int) and stage >= site.gone_at:
            site.connected = False
        answer: Payload | Error | None = Error(0, "no such node")
        if site.connected:
            answer = self.answer(site, kind, asked)
            if site.script.get(kind):
                answer = site.script[kind].pop(0)(answer)
        if isinstance(answer, Error):
            self._replies[message_id] = Message(answer, reply_to=message)
        elif answer is not None:
            records = deserialise(serialise(to_records(answer)))
            self._replies[message_id] = Message(records, reply_to=message)
        return message_id

    def answer(self, site: Site, kind: str, asked: Payload) -> Payload:
        """What an honest institution answers."""
        if kind == "query.identify":
            request = IdentifyRequest.of(asked)
            self.run_name = request.run
            return ok(introduced(site, request).to_payload())
        if kind == "train":
            request = SecureRequest.of(asked)
            open_answer = Payload({})
            if request.step == COLLECT:
                open_answer = self.answer(site, request.summed, request.asks)
            about = request.of_run(self.run_name, self.scenario.digest())
            return ok(part_of_a_sum(self.scenario, site, request, about, open_answer).to_payload())
        if kind == "query.forget":
            return self.forget(site, ForgetRequest.of(asked))
        answers = {
            "train.align": self.align,
            "train.router": self.describe,
            "train.calibrate": self.calibrate,
            "evaluate.stage": self.evaluate,
        }
        return answers[kind](site, asked)

    def align(self, site: Site, asked: Payload) -> Payload:
        """Moves every weight by 0.01, or 0.02, 0.03 ... for later institutions."""
        request = AlignRequest.of(asked)
        task = request.job.task
        images = sum(site.holds[name][0] for name in request.trains_on if name in site.holds)
        channels = channels_of(self.scenario.backbone.name)
        sender = Sender(self.scenario, {}, site.policy, channels, None, request.job)
        improved = True if compares(sender) else None
        if site.weights is not None:
            return ok(AlignReply(site.weights, images, improved=improved).to_payload())
        start = request.layer or weights_of(first_layer(self.scenario, task, channels))
        step = np.float32(0.01 * (1 + list(self.sites.values()).index(site)))
        weights = {name: array + step for name, array in start.items()}
        weighs = method_of(self.scenario.method).weighs
        importance = {name: np.ones_like(array) for name, array in start.items()} if weighs else None
        told = self.scenario.training.strategy == "scaffold"
        control = {name: np.full_like(array, step) for name, array in start.items()} if told else None
        return ok(AlignReply(weights, images, importance, improved, control=control).to_payload())

    def describe(self, site: Site, asked: Payload) -> Payload:
        request, spec = RouterRequest.of(asked), self.scenario.router
        images = site.holds[request.job.task][0]
        width = width_of(spec.features, channels_of(self.scenario.backbone.name))
        f_NF = torch.randn(images, width, generator=torch.Generator().manual_seed(len(request.job.task)))
        router = build_router(spec)
        statistics = router.sufficient_statistics(f_NF, 0)
        if request.alone:
            threshold = 1.5 if spec.constant is None else None
            return ok(RouterReply(router.fit(statistics), images, threshold).to_payload())
        folds = [statistics] * folds_of(self.scenario)
        return ok(RouterReply(statistics, images, folds=folds).to_payload())

    def calibrate(self, site: Site, asked: Payload) -> Payload:
        counts = np.zeros(HISTOGRAM_BINS, np.int64)
        counts[HISTOGRAM_BINS // 2] = site.holds[Job.of(asked).task][0]
        return ok(CalibrateReply(counts).to_payload())

    def evaluate(self, site: Site, asked: Payload) -> Payload:
        """Images of a learned task go to it, others nowhere; of candidates it says that all is well."""
        request = EvaluateRequest.of(asked)
        site.copy = dict(list(site.copy.items())[: request.known])
        mirror = {path.stem: path.read_bytes() for path in site.mirror.glob("*")} if site.mirror else {}
        if not mirror.keys() >= set(request.names):
            return Payload({"outcome": Outcome.NOT_IN_MIRROR})
        for data in [*request.entries, *(mirror[name] for name in request.names)]:
            site.copy[Entry.from_bytes(data).task] = digest_of(data)
        if bank_digest(site.copy) != request.bank:
            return Payload({"outcome": Outcome.BANK_MISMATCH})
        results = {
            task: TaskResult(
                images=test,
                instances=test,
                iou=site.iou,
                dice=site.iou,
                biou=site.iou,
                biou_official=site.iou,
                iou_instance=site.iou,
                hd95=2.0 if self.scenario.evaluation.hd95 else None,
                routes={task if task in site.copy else "identity": test},
            )
            for task, (_, _, test) in site.holds.items()
            if test
        }
        stakes = any(set(request.candidates) - {task} for task in site.holds if task in site.copy)
        canary = False if stakes and site.policy.canaries else None
        return ok(EvaluateReply(results, decodes=len(results), canary=canary).to_payload())

    def forget(self, site: Site, request: ForgetRequest) -> Payload:
        said = purge_statement(site.name, self.run_name, request.leaver, request.entries)
        return ok(ForgetReply(signature_of(site.key, said)).to_payload())


def ok(payload: Payload) -> Payload:
    """A result."""
    return replace(payload, config={**payload.config, "outcome": Outcome.OK})


def identity_of(site: Site) -> IdentifyReply:
    """What a node says about itself and its one institution."""
    return IdentifyReply(
        code=code_fingerprint(),
        backbone="a" * 64,
        compute="cpu-float32-t1",
        institutions={site.name: {task: Holding(*counts) for task, counts in site.holds.items()}},
        policies={site.name: site.policy},
        forecasts={site.name: site.forecasts} if site.forecasts else {},
        preprocessing="b" * 16,
        mirrored=site.mirror is not None,
    )


def introduced(site: Site, request: IdentifyRequest) -> IdentifyReply:
    """What the node says, signed."""
    reply = identity_of(site)
    signature = signature_of(site.key, identify_statement(site.name, request, reply))
    return replace(reply, signatures={site.name: signature})


def part_of_a_sum(
    scenario: Scenario, site: Site, request: SecureRequest, about: Sum, open_answer: Payload
) -> SecureReply:
    """One exchange of a sum, as an institution's own code plays it (client/secagg/member.py)."""
    told: dict[str, Any] = dict(unpacked(request.protocol))
    names = [institution.name for institution in scenario.institutions]
    if request.step == SHARE_KEYS:
        site.keys = {names[int(key) - 1]: pair for key, pair in told.items() if key.isdecimal()}
    if request.step == AGREE:
        survivors = [names[number - 1] for number in told["active_nids"]]
        said = about.survivors_statement(keys_digest(site.keys), survivors)
        return SecureReply(request.summed, request.step, packed(ConfigRecord(signed(site, said))))
    images = sum(site.holds[task][0] for task in tasks_asked(request.asks.config, request.job))
    named = share_of(request.summed, open_answer, images) if request.step == COLLECT else {}

    def plaintext(message: Message, _: Context) -> Message:
        answer = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(list(named.values())), images, {})
        return Message(fitres_to_recorddict(answer, keep_input=True), reply_to=message)

    named_site: Any = type("Named", (), {"name": site.name, "scenario": scenario})
    known = ConfigRecord({key: value for key, value in told.items() if key not in (SIGNATURES, SIGNERS)})
    answer = flower.secaggplus_mod(as_flower_sends(known, named_site, site.context), site.context, plaintext)
    protocol = answer.content.config_records[RECORD_KEY_CONFIGS]
    if request.step == SETUP:
        pair = [cast(bytes, protocol[key]) for key in ("pk1", "pk2")]
        protocol = ConfigRecord({**protocol, **signed(site, about.keys_statement(site.name, pair))})
    return SecureReply(request.summed, request.step, packed(protocol), tuple(named))


def signed(site: Site, statement: Mapping[str, Any]) -> dict[str, bytes]:
    """The institution's signature, as a setting of an exchange."""
    return {SIGNATURE: bytes.fromhex(signature_of(site.key, statement))}


SECRET = Policy.model_validate(
    {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "minimum_cohort": 2}
)
"""Shares what it learned in secure sums of two institutions or more."""

TASKS = {"north": ("polyp",), "south": ("histology", "cardiac_mr"), "west": ("histology",)}


@dataclass
class Scripted:
    """A scenario, its scripted institutions, and the folder that a run of it fills."""

    path: Path
    scenario: Scenario
    sites: dict[str, Site]
    grid: ScriptedGrid

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Run it to its end; the summary."""
        self.write_register()
        folder = RunFolder(self.path, self.scenario if resume else None)
        try:
            run_stream(self.grid, self.scenario, folder)
        finally:
            folder.close()
        summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return summary

    def write_register(self) -> None:
        """The register of the scripted institutions' keys, as a run of theirs would have made it."""
        self.path.mkdir(parents=True, exist_ok=True)
        keys = {name: Keys(signing=public_hex(site.key)) for name, site in self.sites.items()}
        server = public_hex(new_signing_key(self.path / SIGNING_KEY))
        (self.path / REGISTER).write_bytes(Register(institutions=keys, server=server).text())

    def federation(self) -> Federation:
        """The server's side of it, after everybody was met."""
        self.write_register()
        federation = Federation(self.grid, self.scenario, RunFolder(self.path))
        federation.discover()
        return federation


def scripted(
    path: Path, tasks: Mapping[str, tuple[str, ...]] = TASKS, *, images: int = 12, **changes: Any
) -> Scripted:
    """Institutions that hold `images` training images, 4 and 6 more, of each of their tasks."""
    institutions = [
        {"name": name, "data": {task: phantom(task) for task in held}} for name, held in tasks.items()
    ]
    table = tiny_table(**{"institutions": institutions, "router": {"kind": "nearest_mean"}} | changes)
    scenario = Scenario.model_validate(table)
    sites = {name: Site(name, dict.fromkeys(held, (images, 4, 6))) for name, held in tasks.items()}
    return Scripted(path, scenario, sites, ScriptedGrid(scenario, sites.values()))
