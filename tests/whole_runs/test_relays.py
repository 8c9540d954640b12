"""A relay in whole runs: a server that asks one institution, which stands for several."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.register import REGISTER, SIGNING_KEY
from scenarios.engines.inprocess import FIRST_NODE, RUN_ID, InProcessGrid, Settings, forget_institutions
from server.members import serve_members
from server.run.run_folder import RunFolder
from server.stream import run_stream
from tests.conftest import phantom, tiny_table
from tests.runs import FinishedRun, events, private, summary_of

MEMBERS = ("east", "west")
SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}


def sites(*names: str, images: int = 12, **policy: Any) -> list[dict[str, Any]]:
    """Institutions that hold histology."""
    data = {"histology": phantom("histology", images)}
    return [{"name": name, "data": data, "policy": policy} for name in names]


SOUTH = {"name": "south", "data": {"polyp": phantom("polyp")}}


def flat(members: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """All institutions at one server."""
    return tiny_table(institutions=[*members, SOUTH], **changes)


def above(**changes: Any) -> dict[str, Any]:
    """The server above knows the relay, north, and south."""
    return tiny_table(institutions=[*sites("north"), SOUTH], **changes)


def below(members: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The relay's own server knows its members."""
    return tiny_table(institutions=members, relayed=True, **changes)


@contextmanager
def served(folder: Path, table: dict[str, Any], name: str = "members") -> Iterator[Path]:
    """The members' server, in a thread of its own; the folder of its questions. name: of its run folder."""
    scenario = Scenario.model_validate(table | {"deadlines": {"connect": 3.0}})
    settings: Settings = {"out": str(folder), "data-root": "", "ledger-dir": "", "checkpoint": ""}
    run = RunFolder(folder / name)
    (folder / "box" / "stop").unlink(missing_ok=True)
    grid = InProcessGrid(len(scenario.institutions), settings)
    work = threading.Thread(target=serve_members, args=(grid, scenario, run, None, folder / "box"))
    work.start()
    try:
        yield folder / "box"
    finally:
        (folder / "box" / "stop").touch()
        work.join()
        run.close()


def run_above(folder: Path, table: dict[str, Any], box: Path, policy: str = "") -> Path:
    """The run of the server above; its first institution is a relay, a real site with its own files."""
    scenario = Scenario.model_validate(table | {"deadlines": {"connect": 10.0}})
    run = folder / "run"
    settings: Settings = {"out": str(folder), "data-root": "", "ledger-dir": "", "checkpoint": ""}
    grid = InProcessGrid(len(scenario.institutions), settings)
    home = folder / "north"
    home.mkdir()
    (home / "policy.toml").write_text(policy)
    (home / "site.toml").write_text(f'approve = "any"\nrelay = "{box}"\n')
    node = {
        "institution": "north",
        "home": str(home),
        "policy": str(home / "policy.toml"),
        "site": str(home / "site.toml"),
        "register": str(run / REGISTER),
        "signing-key": str(run / "institutions" / "north" / "private" / SIGNING_KEY),
    }
    grid.contexts[FIRST_NODE] = Context(RUN_ID, FIRST_NODE, node, RecordDict(), settings)
    written = RunFolder(run)
    try:
        run_stream(grid, scenario, written)
    finally:
        written.close()
        forget_institutions()
    return run


def relayed(folder: Path, members: list[dict[str, Any]], policy: str = "", **changes: Any) -> Path:
    """A finished run through a relay with these members and this policy of its own."""
    with served(folder, below(members, **changes)) as box:
        return run_above(folder, above(**changes), box, policy)


def assert_alike(relay: Path, direct: Path) -> None:
    """Both runs have the same figures, routes and entries, but for the rounding of means of means."""
    through, without = summary_of(relay), summary_of(direct)
    for figure, rows in without["matrix"].items():
        found = np.array(through["matrix"][figure], float)
        assert np.allclose(found, np.array(rows, float), atol=1e-3, equal_nan=True), figure
    assert through["routing"]["confusion"] == without["routing"]["confusion"]
    entries, expected = Bank.open(relay / "bank"), Bank.open(direct / "bank")
    assert entries.tasks == expected.tasks
    for task in expected.tasks:
        for part in ("layer", "router"):
            arrays = getattr(expected[task], part)
            for name, array in getattr(entries[task], part).items():
                assert np.allclose(array, arrays[name], atol=1e-4), (task, part, name)


def counted(folder: Path) -> dict[str, Any]:
    """What the members' server counted about them."""
    found: dict[str, Any] = json.loads((folder / "members" / "relay.json").read_text())
    return found


def test_members_learn_behind_a_relay_what_they_learn_without_it(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    run = relayed(tmp_path, sites(*MEMBERS))
    assert_alike(run, finished_run(flat(sites(*MEMBERS))))
    assert Bank.open(run / "bank")["histology"].provenance.holders == ("north",)
    (trained,) = [event for event in events(run, "align") if event["task"] == "histology"]
    assert (trained["holders"], trained["images"]) == (["north"], 17)


FITTED = {"kind": "gaussian"}


def test_thresholds_are_fitted_over_all_members(tmp_path: Path, finished_run: FinishedRun) -> None:
    """The relay is the task's only holder for the server above, and has two holders itself."""
    run = relayed(tmp_path, sites(*MEMBERS), router=FITTED)
    direct = finished_run(flat(sites(*MEMBERS), router=FITTED))
    assert_alike(run, direct)
    thresholds = [Bank.open(path / "bank")["histology"].threshold for path in (run, direct)]
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-4)


def test_a_relay_is_one_holder_among_others(tmp_path: Path, finished_run: FinishedRun) -> None:
    """The server above adds the members' statistics and histograms to those of another holder."""
    members, others = sites(*MEMBERS), sites("third", images=8)
    changes: dict[str, Any] = {"router": FITTED, "training": {"rounds": 2, "epochs": 1, "batch_images": 4}}
    with served(tmp_path, below(members, **changes)) as box:
        table = tiny_table(institutions=[*sites("north"), *others, SOUTH], **changes)
        run = run_above(tmp_path, table, box)
    assert_alike(run, finished_run(flat([*members, *others], **changes)))


def test_members_add_up_in_a_secure_sum_and_count_who_they_hide_among(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    """Not even the members' own server sees a single layer; a leaf counts the leaves of its own sum."""
    members = sites("east", "mid", "west", **SECRET)
    run = relayed(tmp_path, members)
    assert_alike(run, finished_run(flat(sites("east", "mid", "west"))))
    hidden = counted(tmp_path)["anonymity"]
    assert {name: facts["adapter"]["server"] for name, facts in hidden.items()} == dict.fromkeys(
        ("east", "mid", "west"), 3
    )


def test_fewer_leaves_than_a_policy_asks_for_do_not_answer_whatever_is_summed_above(tmp_path: Path) -> None:
    """A leaf can check who is in its own sum, and nobody else: two are too few for a cohort of three."""
    table = tiny_table(
        institutions=[*sites("north", "third", "fourth", **SECRET), SOUTH], participation={"missing": "skip"}
    )
    with served(tmp_path, below(sites(*MEMBERS, **SECRET))) as box:
        run = run_above(tmp_path, table, box, OWN_SECRET)
    assert "histology" not in Bank.open(run / "bank").tasks
    refused = {e["institution"]: e["outcome"] for e in events(tmp_path / "members", "refusal")}
    assert refused == {"east": "cohort-too-small", "west": "cohort-too-small"}


OWN_SECRET = 'adapter.aggregation = "secagg"\nrouter.aggregation = "secagg"\n'


@pytest.mark.parametrize("policy", [SECRET, {}])
def test_a_sum_of_sums(tmp_path: Path, finished_run: FinishedRun, policy: dict[str, Any]) -> None:
    """The members hide in their relay's sum, if they want to, and that hides in the sum above."""
    members, others = sites("east", "mid", "west", **policy), sites("third", "fourth", images=8, **SECRET)
    with served(tmp_path, below(members)) as box:
        table = tiny_table(institutions=[*sites("north", **SECRET), *others, SOUTH])
        run = run_above(tmp_path, table, box, OWN_SECRET)
    direct = flat([*sites("east", "mid", "west"), *sites("third", "fourth", images=8)])
    assert_alike(run, finished_run(direct))
    assert summary_of(run)["privacy"]["north"]["anonymity"]["adapter"]["server"] == 3


def test_a_relay_that_tells_no_scores_takes_entries_for_its_members_all_the_same(tmp_path: Path) -> None:
    with served(tmp_path, below(sites(*MEMBERS))) as box:
        run = run_above(tmp_path, above(), box, 'metrics = "never"\n')
    assert Bank.open(run / "bank").tasks == ("polyp", "histology")
    assert summary_of(run)["matrix"]["iou"][1][1] is None
    for name in MEMBERS:
        assert Bank.open(private(tmp_path / "members", name) / "bank").tasks == ("polyp", "histology")


def test_the_bytes_at_the_server_above_do_not_grow_with_the_members(tmp_path: Path) -> None:
    """But for the digits of image counts."""
    traffic = []
    for number, names in enumerate((MEMBERS, ("a", "b", "c", "d", "e", "f"))):
        (tmp_path / str(number)).mkdir()
        run = relayed(tmp_path / str(number), sites(*names, images=8))
        (*_, last) = events(run, "traffic")
        traffic.append(last["up"]["north"] + last["down"]["north"])
    assert traffic[0] == pytest.approx(traffic[1], rel=0.01)


def test_a_members_refusal_is_the_relays_and_its_name_stays_below(tmp_path: Path) -> None:
    members = [*sites("east"), *sites("west", adapter={"share": "never"})]
    with served(tmp_path, below(members)) as box:
        run = run_above(tmp_path, above(), box)
    assert "histology" not in Bank.open(run / "bank").tasks
    (refusal,) = events(run, "refusal")
    assert (refusal["institution"], refusal["outcome"]) == ("north", "adapter-not-shared")
    (refusal,) = events(tmp_path / "members", "refusal")
    assert (refusal["institution"], refusal["outcome"]) == ("west", "adapter-not-shared")
    text = b"".join(
        path.read_bytes() for path in run.rglob("*") if path.is_file() and "private" not in path.parts
    )
    assert b"west" not in text, "the server above knows no member"


def test_the_members_server_may_be_started_again_during_a_run(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    """It comes back with an empty folder, and is sent the whole bank again."""
    ended = threading.Event()

    def two_servers() -> None:
        with served(tmp_path, below(sites(*MEMBERS)), "first"):
            while not (tmp_path / "first" / "bank").exists():
                time.sleep(0.01)
        with served(tmp_path, below(sites(*MEMBERS)), "second"):
            ended.wait()

    operator = threading.Thread(target=two_servers)
    operator.start()
    try:
        run = run_above(tmp_path, above(), tmp_path / "box")
    finally:
        ended.set()
        operator.join()
    assert_alike(run, finished_run(flat(sites(*MEMBERS))))
    assert events(tmp_path / "first", "answer")
    assert {event["kind"] for event in events(tmp_path / "second", "answer")} >= {
        "train.align",
        "evaluate.stage",
    }


NOISY = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "budget": {"epsilon": 8.0, "delta": 1e-2},
}


NOISY_SCORES = {"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 1e-2}}


def test_members_with_noise_pay_their_own_ledgers(tmp_path: Path) -> None:
    run = relayed(tmp_path, sites(*MEMBERS, images=24, **NOISY), privacy={"steps": 2})
    assert "histology" in Bank.open(run / "bank").tasks
    ledgers = [private(tmp_path / "members", name) / "ledger.jsonl" for name in MEMBERS]
    assert all(ledger.read_text().count("\n") >= 2 for ledger in ledgers)
    spent = counted(tmp_path)["epsilon"]
    assert all(0 < spent[name]["epsilon-train"] <= 8 for name in MEMBERS)
    assert not list((tmp_path / "north").rglob("ledger.jsonl")), "the relay has no images to protect"


def test_an_entry_that_is_unlearned_above_is_deleted_at_every_member(tmp_path: Path) -> None:
    leaves = {**SOUTH, "policy": {"leaves_at": 2, "on_leave": "unlearn"}}
    with served(tmp_path, below(sites(*MEMBERS))) as box:
        run = run_above(tmp_path, tiny_table(institutions=[*sites("north"), leaves]), box)
    receipt = json.loads((run / "receipts" / "south-stage-2.json").read_text())
    assert "north" in receipt["purged"]
    told = [(event["institution"], event["kind"]) for event in events(tmp_path / "members", "answer")]
    assert sorted(name for name, kind in told if kind == "query.forget") == list(MEMBERS)
    for name in MEMBERS:
        assert Bank.open(private(tmp_path / "members", name) / "bank").tasks == ("histology",)
    assert Bank.open(tmp_path / "members" / "bank").tasks == ("histology",)


@pytest.mark.parametrize(
    ("members", "changes", "policy", "outcome", "reason"),
    [
        (sites(*MEMBERS), {"seed": 3}, "", "bad-data", "the scenario above is another one"),
        (sites(*MEMBERS, leaves_at=2, on_leave="unlearn"), {}, "", "bad-data", "wants to be unlearned"),
        (sites(*MEMBERS, images=24, **NOISY_SCORES), {}, "", "bad-data", "tells noisy metrics"),
        (sites(*MEMBERS), {}, 'adapter.noise = "dp"\nbudget.epsilon = 8.0\n', "bad-policy", ""),
        (
            [*sites("east"), {**sites("west")[0], "faults": {"gone_at": 0}}],
            {},
            "",
            "no answer from north",
            "no answer from west",
        ),
    ],
)
def test_a_relay_that_cannot_stand_for_its_members_says_why(
    tmp_path: Path,
    members: list[dict[str, Any]],
    changes: dict[str, Any],
    policy: str,
    outcome: str,
    reason: str,
) -> None:
    with served(tmp_path, below(members, **changes)) as box, pytest.raises(RunError, match=outcome):
        run_above(tmp_path, above(), box, policy)
    said = [event["reason"] for event in events(tmp_path / "members", "not-relayed")]
    assert all(reason in text for text in said)
    assert bool(said) == bool(reason)
