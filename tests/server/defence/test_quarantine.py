"""Entries that are held back: by what canaries say, or because they are copies; and how one is admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import server.stream
from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.errors import BankError
from casam_core.protocol.messages import EvaluateRequest
from casam_core.protocol.payload import Payload
from server.defence import quarantine
from server.defence.quarantine import Quarantine, admit_by_hand
from tests.runs import events, result
from tests.server.scripted import Scripted, scripted
from tests.server.test_stream import cut

TASKS = {"north": ("polyp",), "south": ("histology",), "west": ("cardiac_mr",)}
STREAM = ["polyp", "histology", "cardiac_mr"]


def honest(payload: Payload) -> Payload:
    return payload


def canary_fails(payload: Any) -> Payload:
    return Payload(payload.config, payload.arrays, {**payload.metrics, "canary": {"failed": 1}})


def with_a_hijacker(path: Path, stream: list[str] = STREAM, *, leaver: bool = False) -> Scripted:
    """west's entry claims north's images, as north's canary says. leaver: in that stage, south has its task
    learned again without it, by west."""
    tasks = {**TASKS, "west": ("histology", "cardiac_mr")} if leaver else TASKS
    run = scripted(path, tasks, stream=["histology", "polyp", "cardiac_mr"] if leaver else stream)
    if leaver:
        run.sites["south"].policy = Policy(leaves_at=3, on_leave="unlearn")
        run.sites["west"].policy = Policy(keep_samples=True)
    stage = stream.index("cardiac_mr") + 1
    run.sites["north"].script["evaluate.stage"] = [honest] * stage + [canary_fails]
    return run


def test_an_entry_that_claims_others_images_is_held_back_until_it_is_admitted(tmp_path: Path) -> None:
    run = with_a_hijacker(tmp_path / "run")
    summary = run.run()
    (held,) = summary["quarantine"]
    assert held["task"] == "cardiac_mr"
    assert held["reasons"] == ["it claims images of other tasks, north says"]
    assert summary["canary"]["cardiac_mr"] == {"north": True, "south": False, "west": None}
    assert summary["holders"]["cardiac_mr"] == []
    # Everybody was asked anew without it: nobody's images go to it.
    assert summary["routing"]["confusion"]["cardiac_mr"] == {"identity": 6}
    assert run.sites["south"].kinds(stage=3) == ["evaluate.stage"] * 2
    assert Bank.open(run.path / "bank").tasks == ("polyp", "histology")
    assert admit_by_hand(run.path, "cardiac_mr").admitted
    assert Bank.open(run.path / "bank").tasks == ("polyp", "histology", "cardiac_mr")
    assert [event["task"] for event in events(run.path, "admitted")] == ["cardiac_mr"]
    with pytest.raises(BankError, match="holds no entry of task 'knee'; held back: cardiac_mr"):
        admit_by_hand(run.path, "knee")


VERDICTS: dict[str, tuple[Any, str, int, bool, int]] = {
    "before it is in quarantine": (quarantine, "quarantine", 1, False, 2),
    "before the verdict is on disk": (server.stream, "save", 7, False, 2),
    "with the verdict on disk": (server.stream, "save", 7, True, 1),
    "before the second evaluation is on disk": (server.stream, "save", 8, False, 1),
}
"""Where the power goes; and how often north is asked for its canary, which fails."""


@pytest.mark.parametrize(("module", "name", "at", "after", "asked"), VERDICTS.values(), ids=list(VERDICTS))
@pytest.mark.parametrize("retrained", [False, True])
def test_a_quarantine_that_was_cut_ends_as_one_that_was_not(
    tmp_path: Path, module: Any, name: str, at: int, after: bool, asked: int, retrained: bool
) -> None:
    """Also if one of the rejected entries was learned again without a leaver, and is not the last one."""
    broken, whole = (with_a_hijacker(tmp_path / name, leaver=retrained) for name in ("cut", "whole"))
    broken.sites["north"].script["evaluate.stage"] += [canary_fails] * (asked - 1)
    cut(broken, module, name, at, after=after)
    summary = broken.run(resume=True)
    assert summary["quarantine"] == whole.run()["quarantine"]
    assert {held["task"] for held in summary["quarantine"]} >= {"cardiac_mr"}
    assert result(broken.path) == result(whole.path)
    assert broken.sites["west"].kinds(stage=3).count("train.align") == 1
    requests = [payload for kind, payload in broken.sites["north"].asked if kind == "evaluate.stage"]
    assert sum("cardiac_mr" in EvaluateRequest.of(request).candidates for request in requests) == asked


def test_a_canary_that_passes_when_it_is_asked_again_lets_the_entry_in(tmp_path: Path) -> None:
    """The power went before its first answer was on disk."""
    run = with_a_hijacker(tmp_path / "run")
    cut(run, server.stream, "save", 7, after=False)
    assert Quarantine(run.path).held_back()
    assert run.run(resume=True)["quarantine"] == []
    assert Bank.open(run.path / "bank").tasks == ("polyp", "histology", "cardiac_mr")
    assert not [*(run.path / "quarantine" / "entries").iterdir()]


def test_an_entry_that_is_taken_back_has_no_other_sent_again(tmp_path: Path) -> None:
    run = with_a_hijacker(tmp_path / "run", ["polyp", "cardiac_mr", "histology"])
    summary = run.run()
    assert [held["task"] for held in summary["quarantine"]] == ["cardiac_mr"]
    assert Bank.open(run.path / "bank").tasks == ("polyp", "histology")
    asked = [payload for kind, payload in run.sites["south"].asked if kind == "evaluate.stage"]
    assert [payload.config["known"] for payload in asked] == [0, 0, 1, 1, 1]
    assert [len(payload.arrays.get("entries", {})) for payload in asked] == [0, 1, 1, 0, 1]
    assert list(run.sites["south"].copy) == ["polyp", "histology"]


def test_noisy_scores_are_not_asked_for_twice(tmp_path: Path) -> None:
    run = with_a_hijacker(tmp_path / "run")
    budget = {"epsilon_metrics": 1.0, "delta": 1e-5}
    run.sites["west"].policy = Policy.model_validate({"metrics": "noisy", "budget": budget})
    run.sites["west"].script["evaluate.stage"] = [only_rough_scores] * 4
    run.run()
    assert run.sites["west"].kinds(stage=3) == ["train.align", "train.router", "evaluate.stage"]


def only_rough_scores(payload: Any) -> Payload:
    """What a policy with noisy scores lets out."""
    metrics = {
        name: {key: value for key, value in group.items() if key in ("images", "iou", "dice")}
        if name.startswith("score.")
        else group
        for name, group in payload.metrics.items()
        if name != "work"
    }
    return Payload(payload.config, payload.arrays, metrics)


def test_only_holders_of_older_tasks_can_know(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", TASKS, stream=STREAM)
    run.sites["west"].script["evaluate.stage"] = [honest] * 3 + [canary_fails]
    summary = run.run()
    assert summary["quarantine"] == []
    assert [event["failed"] for event in events(run.path, "canary")] == [[], [], []]


def test_a_copied_router_is_held_back_at_first_sight(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", TASKS, stream=STREAM)
    stolen: dict[str, Any] = {}

    def notes(payload: Any) -> Payload:
        stolen.update(payload.arrays)
        return payload  # type: ignore[no-any-return]

    run.sites["north"].script["train.router"] = [notes]
    run.sites["west"].script["train.router"] = [lambda p: Payload(p.config, stolen, p.metrics)]  # type: ignore[union-attr]
    (held,) = run.run()["quarantine"]
    assert held["reasons"] == ["its router is a copy of polyp's"]
    assert Quarantine(run.path).held_back()[0].task == "cardiac_mr"


def test_an_entry_cannot_be_admitted_before_the_run_has_ended(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="expected the folder of a finished run"):
        admit_by_hand(tmp_path, "polyp")


def test_a_held_back_entry_that_was_altered_is_not_admitted(tmp_path: Path) -> None:
    run = with_a_hijacker(tmp_path / "run")
    run.run()
    (path,) = (run.path / "quarantine" / "entries").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BankError, match="was altered; restore it from a copy"):
        admit_by_hand(run.path, "cardiac_mr")
    path.unlink()
    with pytest.raises(BankError, match="cannot be read"):
        admit_by_hand(run.path, "cardiac_mr")
    (run.path / "quarantine" / "manifest.json").write_text("[{}]")
    with pytest.raises(BankError, match="is damaged"):
        admit_by_hand(run.path, "cardiac_mr")
