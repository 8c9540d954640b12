"""A site approves questions: until a person said yes, one word leaves, whatever the server sends.

The server here lies: it sends other patterns, paths, limits and seeds, regular expressions that never end,
and ten thousand copies. All that it sees is the reply.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from PIL import Image

from casam_core.bank.bank import bank_digest
from casam_core.config.scenario import Scenario
from casam_core.config.site_file import ApprovalRules, SiteFile, TaskDescription, read_site_file
from casam_core.errors import DataError, PolicyError
from casam_core.files import write_atomic
from casam_core.protocol.audit import read_log
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import AlignRequest, EvaluateRequest, IdentifyRequest, RouterRequest
from casam_core.protocol.outcomes import RefusalError
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.register import REGISTER, SIGNING_KEY, Keys, Register, new_signing_key, public_hex
from casam_core.protocol.wire import from_records, to_records
from client import client_app
from client.institution import Institution
from client.node.approvals import MOST_PENDING, approvals_in, approve, pending_in, withdraw
from client.release.approval import LARGEST_TEXT, require_approval
from scenarios.engines.inprocess import InProcessGrid
from scenarios.export.schema_pages import quoted
from scenarios.inspection.site_files import dotted
from tests.conftest import tiny_table

SECRETS = [f"mueller-anna-{year}_{n}" for year in range(1931, 1941) for n in range(4)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A real site `north`: 40 images of ten patients whose names nobody else may learn."""
    for part in ("images", "masks"):
        (tmp_path / "data" / "polyp" / part).mkdir(parents=True)
    for number, name in enumerate(SECRETS):
        pixels = np.full((64, 64), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "polyp" / "images" / f"{name}.png")
        Image.fromarray(pixels * 0 + np.eye(64, dtype=np.uint8)).save(
            tmp_path / "data" / "polyp" / "masks" / f"{name}.png"
        )
    (tmp_path / "policy.toml").write_text(
        'metrics = "never"\nadapter.share = "never"\nrouter.share = "never"\n'
    )
    describe(tmp_path)
    keys = Keys(signing=public_hex(new_signing_key(tmp_path / "home" / SIGNING_KEY)))
    register = Register(institutions={"north": keys}, server="ab" * 32)
    (tmp_path / "home" / REGISTER).write_bytes(register.text())
    (tmp_path / "home" / "split.key").write_bytes(bytes([1]) * 32)  # other keys leave small parts
    return tmp_path


def describe(place: Path, more: str = "", **task: Any) -> None:
    """Write the site's own description."""
    spec = {"path": "polyp", "group_pattern": r"-(\d{4})_"} | task
    lines = [more, "[tasks.polyp]", *(f"{key} = {quoted(value)}" for key, value in dotted(spec))]
    (place / "site.toml").write_text("\n".join(lines))


def question(seed: int = 0, **data: Any) -> Scenario:
    """A scenario with one task at north. data: the table that a server sends about it."""
    table = tiny_table(
        stream=["polyp"],
        seed=seed,
        institutions=[{"name": "north", "data": {"polyp": data or {"path": "polyp"}}}],
    )
    return Scenario.model_validate(table)


def node_of(place: Path) -> dict[str, str]:
    """The node's own configuration."""
    return {
        "institution": "north",
        "data-root": str(place / "data"),
        "home": str(place / "home"),
        "policy": str(place / "policy.toml"),
        "site": str(place / "site.toml"),
    }


def asked(place: Path, text: str) -> dict[str, Any]:
    """Everything that leaves the node of `place` after an identify request with this scenario."""
    request = IdentifyRequest.telling(text, "run", code_fingerprint())
    context = Context(1, 1, node_of(place), RecordDict(), {})
    InProcessGrid(1, {})  # Message() asks Flower who is sending
    message = Message(to_records(request.to_payload()), dst_node_id=1, message_type="query.identify")
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    left: Payload = from_records(client_app.app(message, context).content)
    assert not left.arrays
    assert not left.metrics
    left.config.pop("signatures", None)  # over a number that differs at every request
    return dict(left.config)


def say_yes(place: Path, scenario: Scenario) -> None:
    approve(scenario, "north", read_site_file(place / "site.toml"), place / "home", "person")


WORD = {"outcome": "waiting-for-approval"}


def test_one_word_leaves_before_the_approval_and_the_holdings_after_it(place: Path) -> None:
    scenario = question()
    text = scenario.canonical_json()
    assert asked(place, text) == WORD
    say_yes(place, scenario)
    left = asked(place, text)
    assert left["outcome"] == "ok"
    assert json.loads(left["institutions"])["north"]["polyp"].keys() == {"train", "val", "test"}
    withdraw(scenario.digest(), place / "home")
    assert asked(place, text) == WORD


@pytest.mark.parametrize(
    "data",
    [
        {"path": "polyp"},
        {"path": "nothing-here"},
        {"path": "../../../etc"},
        {"path": "polyp", "group_pattern": "(mueller)"},
        {"path": "polyp", "group_pattern": "(schmidt)"},
        {"path": "polyp", "group_pattern": "(.*"},
        {"path": "polyp", "limit": {"test": 1}},
        {"reader": "phantom", "phantom": "polyp", "images": 1_000_000_000},
    ],
)
def test_no_table_of_a_server_is_an_oracle_about_the_sites_files(place: Path, data: dict[str, Any]) -> None:
    """Names could be spelled letter by letter: `ok` where a pattern found a group in every name."""
    scenario = question(**data)
    assert asked(place, scenario.canonical_json()) == WORD
    say_yes(place, scenario)  # and the person's yes changes the question, not the description
    own = question()
    say_yes(place, own)
    left, honest = asked(place, scenario.canonical_json()), asked(place, own.canonical_json())
    assert left == honest


def test_neither_seed_nor_limit_of_a_server_moves_an_image(place: Path) -> None:
    """With the seed varied over runs an image was in train, val and test; `limit.test = 1` gave one image."""
    replies = []
    for seed in range(4):
        scenario = question(
            seed, path="polyp", limit={"test": 1, "train": 3}, split={"val": 0.4, "test": 0.5}
        )
        say_yes(place, scenario)
        replies.append(asked(place, scenario.canonical_json())["institutions"])
    assert len(set(replies)) == 1
    (holding,) = (json.loads(text)["north"]["polyp"] for text in set(replies))
    assert sum(holding.values()) == len(SECRETS)
    assert holding["test"] > 1


def test_an_unapproved_text_is_not_parsed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression, ten thousand copies or a nest of lists: nothing of it costs the site a second."""

    def parsed(*_: object, **__: object) -> Scenario:
        raise AssertionError("an unapproved scenario was parsed")

    monkeypatch.setattr(Scenario, "model_validate_json", parsed)
    table = json.loads(question(path="polyp", group_pattern="(a+)+$" * 50).canonical_json())
    table["institutions"][0]["copies"] = 10_000
    began = time.monotonic()
    for text in (
        json.dumps(table),
        "[" * 100_000,
        "no json",
        json.dumps(table) + " " * LARGEST_TEXT,
    ):
        assert asked(place, text) == WORD
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("mode", ["policy", "any"])
def test_rules_let_no_copies_and_no_other_spelling_in(place: Path, mode: str) -> None:
    describe(place, f'approve = "{mode}"')
    table = json.loads(question().canonical_json())
    assert asked(place, json.dumps(table)) == WORD, "spaces: not the canonical text"
    table["institutions"][0]["copies"] = 10_000
    began = time.monotonic()
    assert asked(place, json.dumps(table, sort_keys=True, separators=(",", ":"))) == WORD
    assert time.monotonic() - began < 2
    assert asked(place, question().canonical_json())["outcome"] == "ok"


def test_rules_decide_without_a_person(place: Path) -> None:
    describe(place, 'approve = "policy"\nrules.max_epochs = 3')
    assert asked(place, question().canonical_json())["outcome"] == "ok"
    long = tiny_table(
        stream=["polyp"], training={"epochs": 4}, institutions=[{"name": "north", "data": {"polyp": {}}}]
    )
    assert asked(place, Scenario.model_validate(long).canonical_json()) == WORD
    (given,) = approvals_in(place / "home")
    assert (given.by, given.tasks) == ("rules", ("polyp",))


def test_rules_let_the_default_number_of_epochs_in() -> None:
    table = tiny_table(training={"epochs": None})
    assert ApprovalRules(max_epochs=1).faults(Scenario.model_validate(table)) == []


@pytest.mark.parametrize("mode", ["ask", "policy", "any"])
def test_a_task_answers_a_limited_number_of_scenarios(place: Path, mode: str) -> None:
    describe(place, f'approve = "{mode}"\nmax_scenarios = 2')
    for seed in range(2):
        if mode == "ask":
            say_yes(place, question(seed))
        assert asked(place, question(seed).canonical_json())["outcome"] == "ok"
    if mode == "ask":
        with pytest.raises(PolicyError, match=r"at most 2 different scenarios \(max_scenarios\)"):
            say_yes(place, question(2))
    assert asked(place, question(2).canonical_json()) == WORD
    assert asked(place, question(1).canonical_json())["outcome"] == "ok"
    withdraw(question(1).digest(), place / "home")
    assert asked(place, question(2).canonical_json()) == WORD, "a withdrawn one still counts"
    assert asked(place, question(1).canonical_json()) == WORD


def test_scenarios_are_counted_by_images_and_not_by_names(place: Path) -> None:
    """Three names of the same images, and one of others."""
    lines = ['approve = "any"', "max_scenarios = 2"]
    for task, path in (("polyp", "polyp"), ("again", "./polyp"), ("part", "polyp/images"), ("other", "else")):
        lines += [f"[tasks.{task}]", f"path = {quoted(path)}"]
    (place / "site.toml").write_text("\n".join(lines))
    found = {}
    for task in ("polyp", "again", "part", "other"):
        institutions = [{"name": "north", "data": {task: {}}}]
        scenario = Scenario.model_validate(tiny_table(stream=[task], institutions=institutions))
        found[task] = asked(place, scenario.canonical_json())["outcome"]
    assert found["polyp"] == found["again"] == "ok"
    assert found["part"] == "waiting-for-approval"
    assert found["other"] == "bad-data", "approved: there is no such folder"


def test_places_are_written_in_one_way(place: Path) -> None:
    """A relative path may name the same folder as an absolute one, and no site file says where it starts."""
    (place / "site.toml").write_text('[tasks.a]\npath = "polyp"\n[tasks.b]\npath = "/data/polyp"\n')
    with pytest.raises(
        DataError, match="only relative paths or only absolute ones, found b absolute and a rel"
    ):
        read_site_file(place / "site.toml")
    (place / "site.toml").write_text('[tasks.a]\npath = "~/polyp"\n[tasks.b]\npath = "/data/polyp"\n')
    read_site_file(place / "site.toml")


def test_an_approval_that_is_withdrawn_while_another_is_given_stays_withdrawn(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(place, 'approve = "any"')
    say_yes(place, question(0))
    waiting: list[threading.Thread] = []

    def meanwhile(path: Path, data: bytes) -> None:
        if path.parent.name == "approved":  # the list was read, and is not written yet
            officer = threading.Thread(target=withdraw, args=(question(0).digest(), place / "home"))
            officer.start()
            officer.join(0.5)
            waiting.append(officer)
        write_atomic(path, data)

    monkeypatch.setattr("client.node.approvals.write_atomic", meanwhile)
    say_yes(place, question(1))
    waiting[0].join()
    assert [bool(item.withdrawn) for item in approvals_in(place / "home")] == [True, False]
    assert asked(place, question(0).canonical_json()) == WORD
    assert asked(place, question(1).canonical_json())["outcome"] == "ok"


def test_every_fault_of_the_data_is_one_word(place: Path) -> None:
    scenario = question()
    say_yes(place, scenario)
    for task in (
        {"path": "nothing-here"},
        {"group_pattern": "(schmidt)"},
        {"group_pattern": "(.*"},
        {"split": {"val": 2}},
    ):
        describe(place, **task)
        left = asked(place, scenario.canonical_json())
        assert left.pop("incident")
        assert left == {"outcome": "bad-data"}
    (place / "site.toml").unlink()
    assert asked(place, scenario.canonical_json())["outcome"] == "bad-data"


def test_a_site_that_does_not_describe_a_task_does_not_approve_it(place: Path) -> None:
    table = tiny_table(stream=["knee"], institutions=[{"name": "north", "data": {"knee": {}}}])
    with pytest.raises(DataError, match=r"expected \[tasks.knee\]"):
        say_yes(place, Scenario.model_validate(table))
    with pytest.raises(PolicyError, match="names 'north', found none"):
        say_yes(
            place,
            Scenario.model_validate(
                tiny_table(stream=["knee"], institutions=[{"name": "east", "data": {"knee": {}}}])
            ),
        )


def test_what_waits_is_kept_within_bounds(tmp_path: Path) -> None:
    for number in range(MOST_PENDING + 5):
        with pytest.raises(RefusalError):
            require_approval(f"text {number}", "north", tmp_path, SiteFile)
    kept = [path.read_text() for path in pending_in(tmp_path)]
    assert len(kept) == MOST_PENDING
    assert kept[-1] == f"text {MOST_PENDING + 4}"


def test_rules_name_what_they_refuse() -> None:
    rules = ApprovalRules(methods=["casam"], max_rounds=1, max_stages=1, max_institutions=1)
    assert rules.faults(question()) == []
    many = Scenario.model_validate(tiny_table(method="ewc", training={"rounds": 2}))
    assert rules.faults(many) == [
        "rules.max_stages is 1, found 2",
        "rules.max_rounds is 1, found 2",
        "rules.max_institutions is 1, found 3",
        "rules.methods is casam, found ewc",
    ]


def test_a_damaged_list_of_approvals_is_no_approval(place: Path) -> None:
    scenario = question()
    say_yes(place, scenario)
    (place / "home" / "approvals.json").write_text("[{]")
    assert asked(place, scenario.canonical_json())["outcome"] == "bad-policy"


def test_a_list_of_approvals_that_another_user_closed_needs_no_backup(tmp_path: Path) -> None:
    """An older list would bring withdrawn approvals back."""
    (tmp_path / "approvals.json").mkdir()  # root, too, cannot read it
    with pytest.raises(PolicyError, match="expected a file that this user can read"):
        approvals_in(tmp_path)


def test_a_description_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the key 'path'"):
        TaskDescription()


def requested(place: Path, scenario: Scenario, *requests: tuple[str, Payload]) -> list[str]:
    """The outcomes of requests that follow an identify request of an approved scenario."""
    context = Context(1, 1, node_of(place), RecordDict(), {})
    telling = IdentifyRequest.telling(scenario.canonical_json(), "run", code_fingerprint()).to_payload()
    outcomes = []
    InProcessGrid(1, {})
    for kind, payload in (("query.identify", telling), *requests):
        message = Message(to_records(payload), dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        outcomes.append(str(from_records(client_app.app(message, context).content).config["outcome"]))
    return outcomes


def test_nothing_leaves_that_was_made_from_too_few_images(place: Path) -> None:
    (place / "policy.toml").write_text("")
    job = Job("north", 1, "polyp")
    questions = [
        ("train.align", AlignRequest(job, None).to_payload()),
        ("train.router", RouterRequest(job, True).to_payload()),
        ("evaluate.stage", EvaluateRequest(Job("north", 1), 0, (), bank_digest({})).to_payload()),
    ]
    scenario = question()
    say_yes(place, scenario)
    assert requested(place, scenario, *questions) == ["ok"] * 4
    describe(place, minimum={"train": 39})
    assert requested(place, scenario, *questions) == ["ok", "too-few-images", "too-few-images", "ok"]
    describe(place, minimum={"test": 39})
    assert requested(place, scenario, *questions) == ["ok", "ok", "ok", "too-few-images"]
    client_app.forget_institutions()


def test_a_withdrawn_approval_ends_the_answers_in_the_middle_of_a_run(place: Path) -> None:
    (place / "policy.toml").write_text("")
    scenario = question()
    say_yes(place, scenario)
    asks = ("train.align", AlignRequest(Job("north", 1, "polyp"), None).to_payload())
    assert requested(place, scenario, asks) == ["ok", "ok"]
    withdraw(scenario.digest(), place / "home")
    assert requested(place, scenario, asks) == ["waiting-for-approval", "unknown-scenario"]


def test_a_policy_that_changes_in_the_middle_of_a_run_is_obeyed_at_the_next_request(place: Path) -> None:
    """Both texts have one length and go into one file, as an editor may write it."""
    scenario = question()
    say_yes(place, scenario)
    asks = ("evaluate.stage", EvaluateRequest(Job("north", 1), 0, (), bank_digest({})).to_payload())
    seen = []
    for metrics in ("exact", "never", "exact"):
        (place / "policy.toml").write_text(f'metrics = "{metrics}"\n')
        seen.append(requested(place, scenario, asks)[1])
    assert seen == ["ok", "metrics-not-shared", "ok"]
    client_app.forget_institutions()


POLICIES = {
    "train.align": ('adapter.share = "never"', "adapter-not-shared"),
    "train.router": ('router = { noise = "dp" }\nbudget = { epsilon = 8, delta = 0.01 }', "ok"),
    "evaluate.stage": ('metrics = "never"', "metrics-not-shared"),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_that_changes_during_the_work_is_obeyed_by_its_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Training takes hours; the officer writes another policy meanwhile. A noisy router is in the ledger."""
    (place / "policy.toml").write_text("")
    scenario, job = question(), Job("north", 1, "polyp")
    say_yes(place, scenario)
    asks: dict[str, Payload] = {
        "train.align": AlignRequest(job, None).to_payload(),
        "train.router": RouterRequest(job, True).to_payload(),
        "evaluate.stage": EvaluateRequest(Job("north", 1), 0, (), bank_digest({})).to_payload(),
    }
    name = {"train.align": "align", "train.router": "fit_router", "evaluate.stage": "evaluate"}[kind]
    honest, (policy, outcome) = getattr(Institution, name), POLICIES[kind]

    def slow(self: Institution, *args: Any) -> Any:
        found = honest(self, *args)
        (place / "policy.toml").write_text(policy)
        return found

    monkeypatch.setattr(Institution, name, slow)
    assert requested(place, scenario, (kind, asks[kind])) == ["ok", outcome]
    *_, line = read_log(place / "home" / "audit.jsonl")
    assert (line.release.kind, line.release.outcome) == (kind, outcome)
    assert (place / "home" / "ledger.jsonl").exists() == (kind == "train.router")
    client_app.forget_institutions()


def test_two_runs_at_once_get_no_more_rounds_than_the_policy_allows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask before either has an answer, so neither is counted when the work begins."""
    (place / "policy.toml").write_text("max_rounds = 1\n")
    scenario = question()
    say_yes(place, scenario)
    asks = ("train.align", AlignRequest(Job("north", 1, "polyp"), None).to_payload())
    honest, other = Institution.align, list[str]()

    def meanwhile(self: Institution, *args: Any) -> Any:
        if not other:
            other.append("asked")
            other.extend(requested(place, scenario, asks))
        return honest(self, *args)

    monkeypatch.setattr(Institution, "align", meanwhile)
    assert requested(place, scenario, asks) == ["ok", "rounds-spent"]
    assert other == ["asked", "ok", "ok"]
    client_app.forget_institutions()


def test_a_request_to_identify_that_names_an_institution_gets_no_looser_guard(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = question()
    say_yes(place, scenario)
    telling = IdentifyRequest.telling(scenario.canonical_json(), "run", code_fingerprint()).to_payload()
    named = Payload({**telling.config, **Job("north", 1, "polyp").config()})
    assert requested(place, scenario, ("query.identify", named)) == ["ok", "ok"]
    honest = client_app.identity_of

    def hiding(hosted: Any) -> Any:
        return replace(honest(hosted), compute="cpu-float32-t77")

    monkeypatch.setattr(client_app, "identity_of", hiding)
    assert requested(place, scenario, ("query.identify", named)) == ["not-allowed", "not-allowed"]
    client_app.forget_institutions()
