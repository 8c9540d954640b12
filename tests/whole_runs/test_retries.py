"""An institution whose process dies is asked again; the numbers are those of a run in which nothing died."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.protocol.wire import from_records
from scenarios.engines.inprocess import InProcessGrid, run_inprocess, set_id
from tests.conftest import tiny_table

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "minimum_cohort": 2}


def run(folder: Path, policies: dict[str, Any] | None = None, **deadlines: Any) -> dict[str, Any]:
    table = tiny_table(deadlines=deadlines)
    for site in table["institutions"]:
        site["policy"] = (policies or {}).get(site["name"], {})
    run_inprocess(Scenario.model_validate(table), folder, None)
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def dying(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, times: int) -> None:
    """The first `times` requests of one kind to one institution kill its process."""
    monkeypatch.setattr("server.federation.federation.RETRY_SECONDS", 0.0)
    whole, left = InProcessGrid._deliver, times

    def deliver(self: InProcessGrid, message: Message) -> str:
        nonlocal left
        asked = from_records(message.content).config
        if left and message.metadata.message_type == kind and asked.get("institution") == name:
            left -= 1
            message_id = set_id(message)
            self._replies[message_id] = Message(Error(0, "the process died"), reply_to=message)
            return message_id
        return whole(self, message)

    monkeypatch.setattr(InProcessGrid, "_deliver", deliver)


@pytest.mark.parametrize("kind", ["train.align", "train.router", "evaluate.stage"])
def test_who_comes_back_is_asked_again_and_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = run(tmp_path / "whole")
    dying(monkeypatch, "north", kind, times=2)
    summary = run(tmp_path / "run")
    assert summary["matrix"] == whole["matrix"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["institutions"] for e in events if e["event"] == "retry"] == [["north"], ["north"]]


def test_a_member_of_a_secure_sum_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = {"south": SECRET, "west": SECRET}
    whole = run(tmp_path / "whole", policies)
    dying(monkeypatch, "west", "train", times=1)
    summary = run(tmp_path / "run", policies)
    assert summary["holders"]["histology"] == ["south", "west"]
    assert summary["matrix"] == whole["matrix"]


def test_without_retries_a_dead_holder_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying(monkeypatch, "north", "train.align", times=1)
    with pytest.raises(RunError, match="no holder of task 'polyp' could train"):
        run(tmp_path / "run", retries=0)


def test_without_retries_a_dead_tester_leaves_empty_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, "north", "evaluate.stage", times=1)
    summary = run(tmp_path / "run", retries=0)
    assert summary["zero_shot"]["iou"]["polyp"] is None
    assert summary["matrix"]["iou"][0][0] is not None
