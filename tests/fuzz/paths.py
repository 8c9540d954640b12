"""The two paths that foreign bytes take, as functions from records to a word: at the server, at a client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from casam_core.bank.bank import bank_digest
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry, digest_of
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario, TrainingSpec
from casam_core.protocol.audit import audit_log
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetReply,
    ForgetRequest,
    IdentifyReply,
    IdentifyRequest,
    RouterReply,
    RouterRequest,
)
from casam_core.protocol.outcomes import WORDS, NoResult, Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.register import register_of_run
from casam_core.protocol.secure_sum import (
    MODULUS,
    RANGE,
    SECURE_SUM,
    SETUP,
    STEPS,
    SecureReply,
    SecureRequest,
)
from casam_core.protocol.wire import from_records, packed, to_records, unpacked
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import histogram_threshold
from client import client_app
from scenarios.engines.inprocess import InProcessGrid, set_id
from server.aggregation import build_strategy, merge_layers
from server.defence.admission import check_answer, distance, first_layer
from server.defence.rounds import fitted_all
from server.evaluation import combine
from server.federation.counters import Traffic
from server.federation.directory import Member, collect
from server.federation.exchange import read
from server.run.run_folder import arrival
from tests.banks import tiny_entry
from tests.conftest import phantom, tiny_table
from tests.fuzz.hostile import Path_
from tests.server.scripted import identity_of, scripted

NAMED = {*Outcome, *NoResult}

JOB = Job("north", 1, "polyp")
TASKS = {"north": ("polyp",), "south": ("polyp",)}


def server_paths(folder: Path) -> dict[str, tuple[Payload, Path_]]:
    """By kind of reply: an honest one, and what the server does with one that arrived."""
    made = scripted(folder / "run", TASKS, stream=["polyp"], router={"kind": "gaussian"})
    grid, site, scenario = made.grid, made.sites["north"], made.scenario
    member = Member(1, dict(identity_of(site).institutions["north"]), Policy())
    spec, router = scenario.router, build_router(scenario.router)
    start = first_layer(scenario, "polyp")
    assert start is not None

    def asked(kind: str, request: Any) -> tuple[Payload, Payload]:
        question = request.to_payload()
        return question, grid.answer(site, kind, question)

    def uses_layer(reply: AlignReply) -> None:
        distance(reply.layer, start)
        other = AlignReply(start, 12)
        merged = merge_layers(build_strategy(TrainingSpec()), 1, [reply, other])
        for layer in (merged, reply.layer):
            entry(layer, {}, None)

    def entry(layer: Any, state: Any, threshold: float | None) -> None:
        about: dict[str, Any] = {"task": "polyp", "stage": 1, "improved": True, "holders": ("north",)}
        made = make_entry(
            scenario, "a" * 64, layer=layer, router=state, threshold=threshold, images=12, **about
        )
        again = Entry.from_bytes(made.to_bytes())
        assert all(np.isfinite(array).all() for array in (*again.layer.values(), *again.router.values()))
        if threshold is not None:
            router.score(torch.zeros(next(iter(again.router.values())).shape[-1]), again.router)

    def uses_alone(reply: RouterReply) -> None:
        entry(start, reply.router, reply.threshold)

    def uses_statistics(reply: RouterReply) -> None:
        for state in fitted_all(router, [reply, honest_description]) or ():
            entry(start, state, 1.0)

    def uses_histogram(reply: CalibrateReply) -> None:
        histogram_threshold(np.sum([reply.histogram, reply.histogram], axis=0), spec)

    def uses_scores(reply: EvaluateReply) -> None:
        combine({"north": reply}, {"polyp": ["north"]})

    requests: dict[str, tuple[str, Any, Any, Callable[[Any], None]]] = {
        "align": ("train.align", AlignReply, AlignRequest(JOB), uses_layer),
        "router alone": ("train.router", RouterReply, RouterRequest(JOB, alone=True), uses_alone),
        "router": ("train.router", RouterReply, RouterRequest(JOB, alone=False), uses_statistics),
        "calibrate": ("train.calibrate", CalibrateReply, CalibrateRequest(JOB), uses_histogram),
        "evaluate": (
            "evaluate.stage",
            EvaluateReply,
            EvaluateRequest(JOB, 0, [], bank_digest({}), ("polyp",)),
            uses_scores,
        ),
        "forget": ("query.forget", ForgetReply, ForgetRequest(JOB, "south", ()), lambda reply: None),
        "identify": ("query.identify", IdentifyReply, IdentifyRequest(), lambda reply: collect({1: reply})),
        "sum": (SECURE_SUM, SecureReply, exchange_of_a_sum(), lambda reply: unpacked(reply.protocol)),
    }
    honest_description = RouterReply.of(asked("train.router", RouterRequest(JOB, alone=False))[1])
    paths: dict[str, tuple[Payload, Path_]] = {}
    for name, (kind, reply, request, use) in requests.items():
        question, honest = asked(kind, request)
        paths[f"server: {name}"] = (honest, server_path(scenario, member, kind, question, reply.of, use))
    return paths


def exchange_of_a_sum() -> SecureRequest:
    """The first request of a secure sum."""
    protocol = {
        "stage": SETUP,
        "sample_num": 3,
        "share_num": 3,
        "threshold": 3,
        "clipping_range": RANGE,
        "target_range": STEPS,
        "mod_range": MODULUS,
        "max_weight": 128.0,
    }
    return SecureRequest(
        JOB, "train.align", SETUP, packed(ConfigRecord(protocol)), AlignRequest(JOB).to_payload()
    )


def server_path(
    scenario: Scenario,
    member: Member,
    kind: str,
    question: Payload,
    of: Callable[[Payload], Any],
    use: Callable[[Any], None],
) -> Path_:
    """The server's path of one kind of reply: reading, admission, the line of its log, merging."""
    InProcessGrid(1, {})  # lets Message() know who is sending
    sent = Message(RecordDict(), dst_node_id=1, message_type=kind)
    set_id(sent)

    def check(to: str, payload: Payload, size: int) -> None:
        if kind != IdentifyReply.kind:
            check_answer(scenario, member, kind, question, payload, size)

    def path(records: RecordDict) -> str:
        answer = read("north", Message(records, reply_to=sent), Traffic(), of, check)
        assert answer.outcome in NAMED, answer.outcome
        assert answer.ok == (answer.reply is not None)
        assert (answer.incident + answer.reason).isprintable()
        if answer.payload is not None:
            arrival("north", "run", "id", kind, JOB, answer.payload, answer.bytes, "now")
        if answer.ok:
            with np.errstate(all="ignore"):
                use(answer.reply)
        return answer.outcome

    return path


def client_paths(folder: Path) -> dict[str, tuple[Payload, Path_]]:
    """By kind of request: an honest one, and the word that a client answers with. Nothing is trained."""
    os.environ["CASAM_HOME"] = str(folder / "home")
    sites = [{"name": name, "data": {"polyp": phantom("polyp", 8)}} for name in ("north", "south")]
    scenario = Scenario.model_validate(tiny_table(stream=["polyp"], institutions=sites))
    InProcessGrid(1, {})
    register_of_run(folder / "run", ["north", "south"])
    node = {"partition-id": 0, "num-partitions": 2}
    context = Context(1, 1, dict(node), RecordDict(), {"out": str(folder), "data-root": "", "checkpoint": ""})
    numbers = iter(range(10**9))

    def asks(kind: str) -> Path_:
        def path(records: RecordDict) -> str:
            if (number := next(numbers)) % 500 == 499:  # a short log: each answer looks through all lines
                (folder / "run/institutions/north/private/audit.jsonl").unlink(missing_ok=True)
                audit_log.cache_clear()
            message = Message(records, dst_node_id=1, message_type=kind)
            message.metadata.__dict__["_message_id"] = f"{kind} {number}"
            content = from_records(client_app.app(message, context).content)
            word = str(content.config["outcome"])
            # A secure sum's own exchanges are read in client/secagg.
            assert word in WORDS - ({"failed"} if kind != SECURE_SUM else set()), (
                folder / "run/institutions/north/private/site.log"
            ).read_text()[-3000:]
            if word != "ok":
                assert not content.arrays
                assert not content.metrics
                assert set(content.config) <= {"outcome", "incident", "code", "audit"}
            return word

        return path

    identify = IdentifyRequest.telling(scenario.canonical_json(), "run", code_fingerprint()).to_payload()
    assert asks("query.identify")(to_records(identify)) == "ok"
    requests = {
        "query.identify": identify,
        "train.align": AlignRequest(JOB).to_payload(),
        "train.router": RouterRequest(JOB, alone=True).to_payload(),
        "train.calibrate": CalibrateRequest(JOB, [{"mean_F": np.zeros(64, np.float32)}] * 5).to_payload(),
        "evaluate.stage": EvaluateRequest(
            JOB, 0, [tiny_entry("polyp").to_bytes()], "", ("polyp",)
        ).to_payload(),
        "query.forget": ForgetRequest(JOB, "south", ("a" * 64,)).to_payload(),
        SECURE_SUM: exchange_of_a_sum().to_payload(),
    }
    paths = {f"client: {kind}": (honest, asks(kind)) for kind, honest in requests.items()}
    entry = tiny_entry("polyp")
    parts = Payload({"form": "low_rank", "rank": 8}, {"layer": entry.layer, "router": entry.router})
    evaluates = asks("evaluate.stage")

    def with_odd_entry(records: RecordDict) -> str:
        """The same for an entry that a lying server made: the digests are right, the arrays are not."""
        try:
            found = from_records(records)
            about = {key: found.config[key] for key in ("form", "rank")}
            made = replace(
                entry,
                layer=dict(found.arrays["layer"]),
                router=dict(found.arrays["router"]),
                provenance=replace(entry.provenance, **about),  # type: ignore[arg-type]
            ).to_bytes()
        except Exception:  # no file can hold it
            return "no entry"
        bank = bank_digest({"polyp": digest_of(made)})
        return evaluates(to_records(EvaluateRequest(JOB, 0, [made], bank, ("polyp",)).to_payload()))

    return paths | {"client: an odd entry": (parts, with_odd_entry)}
