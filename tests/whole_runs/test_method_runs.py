"""Every method runs in the same harness, and does what its description says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.methods import METHODS, elastic
from casam_core.model.forms import weights_of
from casam_core.protocol.messages import AlignRequest
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job
from casam_core.protocol.wire import from_records, to_records
from client.client_app import app as client_app
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from scenarios.inspection.verify import verify
from tests.conftest import tiny_table


def run(folder: Path, method: str, **changes: Any) -> dict[str, Any]:
    run_inprocess(Scenario.model_validate(tiny_table(method=method, **changes)), folder / method, None)
    content: dict[str, Any] = json.loads((folder / method / "summary.json").read_text())
    return content


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_through(tmp_path: Path, method: str) -> None:
    summary = run(tmp_path, method)
    assert summary["method"] == method
    assert summary["complete"]["last_iou"]
    assert (summary["routing"]["accuracy"] is not None) == METHODS[method].routes


def test_frozen_is_zero_shot_and_forgets_nothing(tmp_path: Path) -> None:
    summary = run(tmp_path, "frozen")
    assert summary["trained_parameters"] == 0
    for row in summary["matrix"]["iou"]:
        for task, cell in zip(summary["tasks"], row, strict=True):
            assert cell is None or cell == summary["zero_shot"]["iou"][task]


def test_oracle_and_ours_share_their_entries_layers(tmp_path: Path) -> None:
    run(tmp_path, "oracle")
    run(tmp_path, "casam")
    oracle, ours = Bank.open(tmp_path / "oracle" / "bank"), Bank.open(tmp_path / "casam" / "bank")
    for task in ("polyp", "histology"):
        for name, value in ours[task].layer.items():
            np.testing.assert_array_equal(value, oracle[task].layer[name])


def test_routed_lora_keeps_an_encoder_of_its_own_for_every_task(tmp_path: Path) -> None:
    run(tmp_path, "routed_lora")
    bank = Bank.open(tmp_path / "routed_lora" / "bank")
    polyp, histology = (bank[task] for task in ("polyp", "histology"))
    assert {entry.provenance.form for entry in (polyp, histology)} == {"lora"}
    assert any((polyp.layer[name] != value).any() for name, value in histology.layer.items())


def test_sequential_goes_on_from_the_layer_of_the_stage_before(tmp_path: Path) -> None:
    """With a learning rate of almost nothing, the second stage ends where the first did."""
    run(tmp_path, "sequential", alignment={"form": "low_rank", "learning_rate": 1e-12})
    first, second = (Bank.open(tmp_path / "sequential" / "bank" / f"stage-{n}")["shared"] for n in (1, 2))
    assert first.threshold is None  # no router chooses it
    assert verify(tmp_path / "sequential" / "bank" / "stage-2") == {"bank": [], "shared": []}
    for name, value in first.layer.items():
        np.testing.assert_allclose(second.layer[name], value, atol=1e-9)


def test_elastic_weights_move_less_than_free_ones(tmp_path: Path) -> None:
    def moved(method: str) -> float:
        run(tmp_path, method, training={"epochs": 6, "batch_images": 4})
        first, second = (Bank.open(tmp_path / method / "bank" / f"stage-{n}")["shared"] for n in (1, 2))
        return float(sum(np.abs(second.layer[k] - v).sum() for k, v in first.layer.items()))

    assert moved("ewc") < moved("sequential")


def test_the_anchor_of_every_round_is_the_layer_of_the_stage_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = []

    def remembering(start: nn.Module, *others: Any) -> Any:
        anchors.append(weights_of(start))
        return elastic(start, *others)

    monkeypatch.setitem(METHODS, "ewc", dataclasses.replace(METHODS["ewc"], penalty=remembering))
    run(tmp_path, "ewc", training={"epochs": 1, "batch_images": 4, "rounds": 2})
    first = Bank.open(tmp_path / "ewc" / "bank" / "stage-1")["shared"].layer
    assert len(anchors) == 4  # the second stage's two holders in two rounds; none in the first stage
    for anchor in anchors:
        for name, value in first.items():
            # The bank rounds what training goes on from exactly.
            np.testing.assert_array_equal(anchor[name].astype(value.dtype), value)


def test_joint_training_sees_the_images_of_all(tmp_path: Path) -> None:
    run(tmp_path, "joint")
    events = [json.loads(line) for line in (tmp_path / "joint" / "events.jsonl").read_text().splitlines()]
    first, second = (event["images"] for event in events if event["event"] == "align")
    # 6 polyps; then these and both holders' 6 and 7 histology images, all at one institution.
    assert (first, second) == (6, 19)


def test_a_real_site_refuses_to_pool() -> None:
    grid = InProcessGrid(1, {"out": "/tmp/x"})
    ((node, context),) = grid._contexts.items()
    context.node_config["institution"] = "north"
    request = AlignRequest(Job("north", 1, "polyp"), None, pooled=True).to_payload()
    from flwr.app import Message

    reply = client_app(Message(to_records(request), dst_node_id=node, message_type="train.align"), context)
    assert from_records(reply.content).config["outcome"] == Outcome.POOLING_REFUSED


@pytest.mark.parametrize(
    ("keeps", "trained"), [(True, ["north", "south", "west"]), (False, ["south", "west"])]
)
def test_replay_trains_along_only_where_samples_may_be_kept(
    tmp_path: Path, keeps: bool, trained: list[str]
) -> None:
    table = tiny_table()
    table["institutions"][0]["policy"] = {"keep_samples": keeps}
    assert run(tmp_path, "replay", institutions=table["institutions"])["holders"]["histology"] == trained


def test_a_site_that_keeps_nothing_refuses_to_train_on_an_earlier_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server asks for, the site decides."""
    greedy = dataclasses.replace(METHODS["replay"], trainers=lambda cohort: {"north": ("polyp",)})
    monkeypatch.setitem(METHODS, "replay", greedy)
    summary = run(tmp_path, "replay")
    events = [json.loads(line) for line in (tmp_path / "replay" / "events.jsonl").read_text().splitlines()]
    assert [e["outcome"] for e in events if e["event"] == "refusal"] == [Outcome.SAMPLES_NOT_KEPT]
    assert summary["privacy"]["north"]["refusals"] == {Outcome.SAMPLES_NOT_KEPT: 1}
    assert summary["holders"] == {"polyp": ["north"], "histology": []}
