"""A home that was restored from a backup does not spend its budget again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casam_core.errors import RunError
from casam_core.protocol.audit import SEEN, SEEN_SIGNATURE, broken, read_log, seen_statement
from casam_core.protocol.messages import AlignRequest
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import AUDIT, Job, Payload
from casam_core.protocol.register import SIGNING_KEY, signature_of, signing_key
from client.client_app import forget_institutions
from client.release.ledger import Ledger
from scenarios.commands.cli import app
from tests.client.release.test_outbox import Node
from tests.server.scripted import scripted

PRIVATE = {"adapter": {"noise": "dp"}, "budget": {"epsilon": 30.0, "delta": 0.01}}


def asks(node: Node, place: str, signer: Path | None = None) -> Payload:
    """The server's request, with what it saw last."""
    key = signing_key(signer or node.private.parents[2] / SIGNING_KEY)
    signature = signature_of(key, seen_statement("north", place))
    request = AlignRequest(Job("north", 1, "polyp")).to_payload()
    return node.ask("train.align", Payload({**request.config, SEEN: place, SEEN_SIGNATURE: signature}))


def restored_from_backup(node: Node) -> tuple[str, Path]:
    """(what the server saw last, audit log): one private release was made after the backup."""
    backup = node.private.with_name("backup")
    shutil.copytree(node.private, backup)
    seen = str(node.align().config[AUDIT])
    shutil.rmtree(node.private)
    shutil.copytree(backup, node.private)
    forget_institutions()
    return seen, node.private / "audit.jsonl"


def test_it_refuses_before_any_budget_is_spent(tmp_path: Path) -> None:
    node = Node(tmp_path, **PRIVATE)
    seen, audit = restored_from_backup(node)
    answer = asks(node, seen)
    assert answer.config["outcome"] == Outcome.ROLLED_BACK
    assert Ledger(node.private / "ledger.jsonl").lines() == []
    assert "casam audit accept" in (node.private / "site.log").read_text()
    assert asks(node, seen).config["outcome"] == Outcome.ROLLED_BACK, "its own refusal is no proof"
    assert broken(read_log(audit)) is None


def test_an_officer_can_accept_the_loss_and_the_log_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path, **PRIVATE)
    seen, audit = restored_from_backup(node)
    assert asks(node, seen).config["outcome"] == Outcome.ROLLED_BACK
    said = CliRunner().invoke(app, ["audit", "accept", str(audit), seen, "--reason", "disk failure"])
    assert said.exit_code == 0, said.output
    forget_institutions()
    assert asks(node, seen).config["outcome"] == Outcome.OK
    (line,) = [line.release for line in read_log(audit) if line.release.kind == "accepted"]
    assert (line.clause, line.records) == (seen, ("disk failure",))
    other = seen[:-1] + ("0" if seen[-1] != "0" else "1")
    assert asks(node, other).config["outcome"] == Outcome.ROLLED_BACK


def test_only_the_server_says_what_it_saw(tmp_path: Path) -> None:
    node = Node(tmp_path)
    stranger = tmp_path / "stranger.key"
    seen = str(node.align().config[AUDIT])
    assert asks(node, seen, signer=node.private / SIGNING_KEY).config["outcome"] == Outcome.BAD_REQUEST
    assert asks(node, "17").config["outcome"] == Outcome.BAD_REQUEST
    assert asks(node, seen).config["outcome"] == Outcome.OK
    assert not stranger.exists()


def test_the_server_remembers_over_runs_and_does_not_learn_from_a_refusal(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    federation = run.federation()
    high, low = f"{9:012d}:{'a' * 64}", f"{3:012d}:{'b' * 64}"
    federation.heads.saw("north", high, ok=True)
    federation.heads.saw("north", low, ok=False)
    assert federation.heads.places == {"north": high}
    federation.heads.keep()
    federation.heads.saw("north", low, ok=True)
    assert federation.heads.places == {"north": low}, "the institution accepted the loss and answered"
    again = type(federation.heads)(tmp_path / "run" / "register.json", federation.key)
    assert again.places == {"north": high}
    (told,) = again.told({"north": Payload({"a": 1})}).values()
    assert told.config[SEEN] == high


@pytest.mark.parametrize("content", ["[]", "{", '{"north": 3}'])
def test_a_memory_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    federation = scripted(tmp_path / "run").federation()
    (tmp_path / "run" / "heads.json").write_text(content)
    with pytest.raises(RunError, match=r"heads\.json: expected what the server saw"):
        type(federation.heads)(tmp_path / "run" / "register.json", federation.key)
