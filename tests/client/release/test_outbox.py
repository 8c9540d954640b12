"""Nothing that an exception says leaves the institution, and nothing leaves unlogged."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from casam_core.config.scenario import Scenario
from casam_core.errors import CheckpointError, DataError
from casam_core.protocol.audit import read_log
from casam_core.protocol.fingerprint import ROOT, code_fingerprint
from casam_core.protocol.messages import AlignRequest, IdentifyRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import AUDIT, Job, Payload
from casam_core.protocol.register import register_of_run
from casam_core.protocol.wire import from_records, serialise, to_records
from client.client_app import app, forget_institutions
from client.node.flower_entry import broken_app
from client.release import permission as policy
from scenarios.engines.inprocess import InProcessGrid
from tests.conftest import tiny_table

SECRET = "patient Doe, /data/doe.png"


class Node:
    """One node that hosts `north`, as Flower sees it."""

    def __init__(self, folder: Path, **site_policy: Any) -> None:
        table = tiny_table()
        table["institutions"][0]["policy"] = site_policy
        self.scenario = Scenario.model_validate(table)
        InProcessGrid(1, {})  # Message() asks Flower who is sending
        node = {"partition-id": 0, "num-partitions": 3}
        self.context = Context(
            1, 1, node, RecordDict(), {"out": str(folder), "data-root": "", "checkpoint": ""}
        )
        register_of_run(folder / "run", [site.name for site in self.scenario.institutions])
        self.private = folder / "run" / "institutions" / "north" / "private"
        request = IdentifyRequest.telling(self.scenario.canonical_json(), "run", code_fingerprint())
        assert self.ask("query.identify", request.to_payload()).config["outcome"] == Outcome.OK

    def ask(self, kind: str, payload: Payload, request: str | None = None) -> Payload:
        message = Message(to_records(payload), dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = request or str(uuid.uuid4())
        self.reply = app(message, self.context)
        return from_records(self.reply.content)

    def align(self, request: str | None = None) -> Payload:
        return self.ask("train.align", AlignRequest(Job("north", 1, "polyp"), None).to_payload(), request)


@pytest.fixture
def node(tmp_path: Path) -> Any:
    yield Node(tmp_path)
    forget_institutions()


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DataError(SECRET), Outcome.BAD_DATA),
        (CheckpointError(SECRET), Outcome.BAD_CHECKPOINT),
        (RefusalError(Outcome.BANK_MISMATCH, SECRET), Outcome.BANK_MISMATCH),
        (ValueError(SECRET), Outcome.FAILED),
        (FileNotFoundError(2, "No such file", "/data/doe.png"), Outcome.FAILED),
        (MemoryError(SECRET), Outcome.FAILED),
    ],
)
def test_a_failure_becomes_one_word_and_an_incident(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    monkeypatch.setattr(policy, "align", failing(error))
    answer = node.align()
    assert answer.config["outcome"] == outcome
    assert set(answer.config) == {"outcome", "incident", AUDIT}
    assert b"doe" not in serialise(node.reply.content).lower()
    log = node.private / "site.log"
    assert "doe" in log.read_text().lower()
    assert str(answer.config["incident"]) in log.read_text()
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def test_what_the_guard_refuses_is_replaced_by_one_word(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = policy.align

    def greedy(*args: Any) -> Any:
        reply = honest(*args)
        return type(
            "Greedy", (), {"to_payload": lambda self: Payload({"note": SECRET}, {"layer": reply.layer})}
        )()

    monkeypatch.setattr(policy, "align", greedy)
    answer = node.align()
    assert answer.config["outcome"] == Outcome.NOT_ALLOWED
    assert not answer.arrays
    assert b"Doe" not in serialise(node.reply.content)


def test_what_cannot_be_sent_is_not_allowed_and_is_not_quoted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsendable: Any = type("Odd", (), {"to_payload": lambda self: Payload({}, {}, {"a": {"b": SECRET}})})
    monkeypatch.setattr(policy, "align", lambda *args: unsendable())
    assert node.align().config["outcome"] == Outcome.NOT_ALLOWED
    assert b"Doe" not in serialise(node.reply.content)


def test_a_log_that_cannot_be_written_lets_out_one_word_and_nothing_else(node: Node) -> None:
    (node.private / "audit.jsonl").unlink()
    (node.private / "audit.jsonl").mkdir()
    answer = node.align()
    assert answer.config["outcome"] == Outcome.FAILED
    assert not answer.arrays


def test_an_answer_is_in_the_log_before_it_leaves_and_says_where(node: Node) -> None:
    answer = node.align()
    *_, line = read_log(node.private / "audit.jsonl")
    assert answer.config[AUDIT] == f"{line.sequence:012d}:{line.head}"
    assert line.release.bytes == len(serialise(node.reply.content))
    assert (line.release.kind, line.release.clause, line.release.outcome) == ("train.align", "adapter", "ok")
    assert any(record.startswith("layer/") for record in line.release.records)


def test_an_old_message_played_again_is_not_answered_again(node: Node) -> None:
    assert node.align("request-1").config["outcome"] == Outcome.OK
    again = node.align("request-1")
    assert again.config["outcome"] == Outcome.REPEATED
    assert not again.arrays


def test_a_refusal_is_logged_with_the_clause_that_refused(tmp_path: Path) -> None:
    node = Node(tmp_path, adapter={"share": "never"})
    assert node.align().config["outcome"] == Outcome.ADAPTER_NOT_SHARED
    *_, line = read_log(node.private / "audit.jsonl")
    assert (line.release.outcome, line.release.clause) == (Outcome.ADAPTER_NOT_SHARED, "adapter")
    forget_institutions()


def test_a_kind_of_message_that_nobody_handles_says_nothing_of_why(node: Node) -> None:
    answer = node.ask("train.images", Payload(Job("north", 1, "polyp").config()))
    assert answer.config["outcome"] == Outcome.FAILED
    assert set(answer.config) == {"outcome", "incident", AUDIT}


def test_a_client_that_cannot_be_imported_says_one_word(tmp_path: Path) -> None:
    InProcessGrid(1, {})
    message = Message(to_records(Payload({})), dst_node_id=1, message_type="train.align")
    context = Context(1, 1, {"home": str(tmp_path)}, RecordDict(), {})
    reply = broken_app(ImportError(SECRET))(message, context)
    assert from_records(reply.content).config["outcome"] == Outcome.FAILED
    assert b"Doe" not in serialise(reply.content)
    assert SECRET in (tmp_path / "node-0.log").read_text()


def test_an_import_failure_of_the_bundle_ends_in_that_app() -> None:
    """With a client.client_app that cannot be imported the bundle still has an app."""
    code = (
        "import sys; sys.modules['client.client_app'] = None\n"
        "import client.node.flower_entry as bundle\n"
        "print(type(bundle.app).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "ClientApp"
