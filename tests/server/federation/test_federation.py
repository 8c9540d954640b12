"""Asking institutions by name: who is asked again, what is counted, and what keeps a run from starting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error

from casam_core.config.policy import Policy
from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.messages import CalibrateReply, CalibrateRequest, IdentifyRequest
from casam_core.protocol.payload import Job, Payload
from scenarios.engines.inprocess import FIRST_NODE
from server.federation import directory
from server.federation.directory import collect
from server.federation.federation import Federation
from server.run.run_folder import RunFolder, read_arrivals
from tests.runs import events, result
from tests.server.scripted import (
    Behaviour,
    Scripted,
    Site,
    dies,
    identity_of,
    introduced,
    ok,
    refuses,
    says,
    scripted,
    stays_silent,
)

KINDS = ["train.align", "train.router", "evaluate.stage"]


@pytest.mark.parametrize("kind", KINDS)
def test_who_comes_back_is_asked_again_and_nothing_is_missing(tmp_path: Path, kind: str) -> None:
    whole, lossy = scripted(tmp_path / "whole"), scripted(tmp_path / "lossy")
    whole.run()
    lossy.sites["north"].script[kind] = [dies, dies]
    lossy.run()
    assert result(lossy.path) == result(whole.path)
    retries = events(lossy.path, "retry")
    assert [(event["institutions"], event["attempt"]) for event in retries] == [
        (["north"], 1),
        (["north"], 2),
    ]


def test_a_node_that_restarts_is_found_under_its_new_number(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")

    def restarts(honest: Any) -> Error:
        (node,) = (number for number, site in run.grid.sites.items() if site.name == "north")
        run.grid.sites[7] = run.grid.sites.pop(node)
        return dies(honest)

    run.sites["north"].script["train.align"] = [restarts]
    assert run.run()["holders"]["polyp"] == ["north"]


def test_without_retries_a_dead_tester_leaves_empty_cells(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"retries": 0})
    run.sites["north"].script["evaluate.stage"] = [dies]
    summary = run.run()
    assert summary["zero_shot"]["iou"]["polyp"] is None
    assert summary["matrix"]["iou"][0][0] is not None


def test_a_refusal_is_counted_and_said_with_its_incident(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["train.align"] = [refuses("rounds-spent")]
    summary = run.run()
    (refusal,) = events(run.path, "refusal")
    assert (refusal["institution"], refusal["outcome"], refusal["incident"]) == (
        "north",
        "rounds-spent",
        "beef",
    )
    assert summary["privacy"]["north"]["refusals"] == {"rounds-spent": 1}
    assert summary["privacy"]["north"]["releases"] == 4


def test_an_answer_that_does_not_answer_is_rejected_and_counted(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", participation={"missing": "skip"})
    run.sites["north"].script["train.align"] = [says(**{"epsilon-train": -1.0})]
    summary = run.run()
    (rejected,) = events(run.path, "rejected")
    assert "epsilon-train" in rejected["reason"]
    assert summary["privacy"]["north"]["rejections"] == {"train.align": 1}
    assert summary["privacy"]["north"]["epsilon_train"] is None


def test_the_budget_that_was_spent_is_what_the_last_answer_says(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["evaluate.stage"] = [says(**{"epsilon-train": e}) for e in (0.5, 1.0, 1.5)]
    assert run.run()["privacy"]["north"]["epsilon_train"] == 1.5


def test_every_answer_is_in_the_servers_audit_log(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].script["train.align"] = [refuses("rounds-spent")]
    run.run()
    arrived = [item for item in read_arrivals(run.path / "audit.jsonl") if item.institution == "north"]
    assert [(item.kind, item.outcome) for item in arrived] == [
        ("evaluate.stage", "ok"),
        ("train.align", "rounds-spent"),
        ("evaluate.stage", "ok"),
        ("evaluate.stage", "ok"),
    ]


def test_one_that_is_not_connected_is_not_waited_for(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", participation={"missing": "skip"}, deadlines={"connect": 0.1})
    run.sites["west"].connected = False
    federation = run.federation()
    assert federation.absent == ["west"]
    asks = {"west": CalibrateRequest(Job("west", 2, "histology"), [])}
    answers = federation.ask(asks, CalibrateReply)
    assert answers["west"].outcome == "unreachable"
    assert events(run.path, "retry") == []


# --- What keeps a run from starting ----------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_a_site_that_cannot_open_its_data_stops_the_run_or_is_left_out(tmp_path: Path, missing: str) -> None:
    run = scripted(tmp_path / "run", participation={"missing": missing}, deadlines={"connect": 0.1})
    run.sites["west"].script["query.identify"] = [refuses("bad-data")]
    if missing == "stop":
        with pytest.raises(RunError, match=r"an institution cannot take part \(bad-data, incident beef\)"):
            run.federation()
        return
    assert run.federation().absent == ["west"]
    assert len(run.sites["west"].asked) == 1


OTHER_VERSIONS = {
    "code": (
        lambda honest: Payload({"outcome": "other-code", "code": "0123456789abcdef"}),
        "a node 0123456789abcdef; stop the local",
    ),
    "schema": (
        lambda honest: Payload({**honest.config, "schema": 7}, honest.arrays, honest.metrics),
        "message schema: the server speaks 6, a node 7; update the older",
    ),
    "bundle": (
        lambda honest: Error(7, "The FAB could not be verified."),
        "bundle: a site's launcher refuses the bundle of this run",
    ),
}


@pytest.mark.parametrize("what", OTHER_VERSIONS)
def test_a_node_of_another_version_is_left_out_until_it_is_put_right(tmp_path: Path, what: str) -> None:
    answer, words = OTHER_VERSIONS[what]
    run = scripted(tmp_path / "run", participation={"missing": "skip"}, deadlines={"connect": 0.1})
    federation = run.federation()
    run.sites["west"].script["query.identify"] = [answer]
    federation.discover()
    assert federation.absent == ["west"]
    (event,) = events(run.path, "other-version")
    assert words in event["reason"]
    federation.discover()
    assert federation.absent == []
    assert len(events(run.path, "other-version")) == 1


@pytest.mark.parametrize("what", OTHER_VERSIONS)
def test_where_nobody_may_be_missing_another_version_ends_the_run(tmp_path: Path, what: str) -> None:
    answer, words = OTHER_VERSIONS[what]
    run = scripted(tmp_path / "run")
    run.sites["west"].script["query.identify"] = [answer]
    with pytest.raises(RunError, match=re.escape(words)):
        run.federation()


def test_a_run_whose_nodes_all_have_another_version_says_so(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", participation={"missing": "skip"}, deadlines={"connect": 0.1})
    for site in run.sites.values():
        site.script["query.identify"] = [OTHER_VERSIONS["code"][0]]
    with pytest.raises(RunError, match=r"no answer from .*; code: the server runs"):
        run.federation()


def test_a_node_that_forgot_the_scenario_is_told_again(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    federation = run.federation()
    run.sites["west"].script["query.identify"] = [refuses("unknown-scenario")]
    federation.discover()
    told = [bool(payload.config.get("scenario")) for _, payload in run.sites["west"].asked]
    assert told == [True, False, True]
    assert federation.absent == []


def test_two_nodes_that_claim_one_institution_end_the_run(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.grid.sites[7] = Site("north", run.sites["north"].holds, key=run.sites["north"].key)
    with pytest.raises(RunError, match="two nodes claim to be institution 'north'"):
        run.federation()


def test_a_node_cannot_stand_for_an_institution_whose_key_it_lacks(tmp_path: Path) -> None:
    """One hostile node was two members of a cohort of three, as soon as the honest one was away."""
    run = scripted(tmp_path / "run", participation={"missing": "skip"}, deadlines={"connect": 0.5})
    run.sites["west"].connected = False
    south, north = run.sites["south"], run.sites["north"]
    run.grid.sites[7] = Site("west", run.sites["west"].holds, key=south.key)  # a registered key, another name
    run.grid.sites[8] = Site("west", run.sites["west"].holds)
    run.grid.sites[9] = Site("north", north.holds, script={"query.identify": [replayed(run, "north")]})
    federation = run.federation()
    assert list(federation.directory.members) == ["north", "south"]
    assert federation.directory.members["north"].node == FIRST_NODE
    ignored = {(event["node"], event["institution"]) for event in events(run.path, "unregistered")}
    assert ignored == {(7, "west"), (8, "west"), (9, "north")}


def replayed(run: Scripted, name: str) -> Behaviour:
    """What the institution answered to another node's request."""
    asked = IdentifyRequest("run", nonce="seen on the wire")
    return lambda honest: ok(introduced(run.sites[name], asked).to_payload())


def test_a_run_without_the_true_institution_ends_and_names_the_claim(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", deadlines={"connect": 0.5})
    run.sites["west"].key = Ed25519PrivateKey.generate()
    run.write_register()
    run.sites["west"].key = Ed25519PrivateKey.generate()
    with pytest.raises(RunError, match=r"no answer from west .* registered key: west by node 1002"):
        Federation(run.grid, run.scenario, RunFolder(run.path)).discover()


def test_an_institution_that_says_more_than_it_signed_is_ignored(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", participation={"missing": "skip"}, deadlines={"connect": 0.5})
    run.sites["west"].script["query.identify"] = [says(compute="cpu-float32-t9")]
    assert list(run.federation().directory.members) == ["north", "south"]


def test_an_institution_that_started_again_during_the_question_is_the_newer_node() -> None:
    replies = {9: identity_of(Site("north", {})), 4: identity_of(Site("north", {}))}
    assert collect(replies).members["north"].node == 4


def test_a_node_that_is_not_needed_is_not_waited_for(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    stranger = run.grid.sites[7] = Site("stranger", {}, script={"query.identify": [stays_silent]})
    assert list(run.federation().members) == ["north", "south", "west"]
    assert stranger.asked


def test_a_task_that_nobody_holds_is_named(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.sites["north"].holds = {}
    with pytest.raises(ScenarioError, match="task 'polyp' of the stream is held by no connected institution"):
        run.federation()


def test_members_stand_in_the_scenarios_order(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run")
    run.grid.sites = dict(reversed(run.grid.sites.items()))
    run.sites["north"].policy = Policy(leaves_at=2)
    federation = run.federation()
    assert federation.present(1) == ["north", "south", "west"]
    assert federation.present(2) == ["south", "west"]
    assert federation.testers("histology") == ["south", "west"]
    assert federation.tasks == ["cardiac_mr", "histology", "polyp"]


def test_the_server_waits_for_approvals_and_says_who_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "APPROVAL_SECONDS", 0.01)
    run = scripted(tmp_path / "run")
    waits = [refuses("waiting-for-approval")] * 3
    run.sites["north"].script["query.identify"] = list(waits)
    assert run.run()["holders"]["polyp"] == ["north"]
    said = [line for line in capsys.readouterr().out.splitlines() if "wait for an approval" in line]
    assert len(said) == 1, "once, however often it asks"
    digest = run.grid.scenario.digest()[:12]
    assert f"scenario {digest} (missing: north)" in said[0]
    assert f"casam site approve {digest}" in said[0]
    texts = [p.config.get("scenario") for kind, p in run.sites["north"].asked if kind == "query.identify"]
    assert all(texts[:4]), "a node that keeps nothing gets the whole scenario again"


def test_a_run_that_nobody_approves_ends_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "APPROVAL_SECONDS", 0.01)
    run = scripted(tmp_path / "run", deadlines={"connect": 0.2})
    run.sites["north"].script["query.identify"] = [refuses("waiting-for-approval")] * 1000
    with pytest.raises(RunError, match=r"no answer from north .* 1 of the nodes wait .*casam site approve"):
        run.run()
