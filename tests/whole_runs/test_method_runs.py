"""Every method runs in the same harness, and does what its description says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.methods import METHODS, elastic
from casam_core.model.forms import form_spec, weights_of
from casam_core.protocol.messages import AlignRequest, layer_spec
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job
from casam_core.protocol.wire import from_records, to_records
from casam_use.loaded_bank import load_bank
from client.client_app import app as client_app
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from scenarios.inspection.verify import verify
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun, events, summary_of


def run(folder: Path, method: str, **changes: Any) -> Path:
    run_inprocess(Scenario.model_validate(tiny_table(method=method, **changes)), folder, None)
    return folder


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_through(finished_run: FinishedRun, method: str) -> None:
    summary = summary_of(finished_run(tiny_table(method=method)))
    assert summary["method"] == method
    assert summary["complete"]["last_iou"]
    assert (summary["routing"]["accuracy"] is not None) == METHODS[method].routes


def test_frozen_is_zero_shot_and_forgets_nothing(finished_run: FinishedRun) -> None:
    summary = summary_of(finished_run(tiny_table(method="frozen")))
    assert summary["trained_parameters"] == 0
    for row in summary["matrix"]["iou"]:
        for task, cell in zip(summary["tasks"], row, strict=True):
            assert cell is None or cell == summary["zero_shot"]["iou"][task]


def test_oracle_and_ours_share_their_entries_layers(finished_run: FinishedRun) -> None:
    oracle, ours = (Bank.open(finished_run(tiny_table(method=m)) / "bank") for m in ("oracle", "casam"))
    for task in ("polyp", "histology"):
        for name, value in ours[task].layer.items():
            np.testing.assert_array_equal(value, oracle[task].layer[name])


def test_routed_lora_keeps_an_encoder_of_its_own_for_every_task(finished_run: FinishedRun) -> None:
    bank = Bank.open(finished_run(tiny_table(method="routed_lora")) / "bank")
    polyp, histology = (bank[task] for task in ("polyp", "histology"))
    assert {entry.provenance.form for entry in (polyp, histology)} == {"lora"}
    assert any((polyp.layer[name] != value).any() for name, value in histology.layer.items())


def test_updates_of_the_mask_decoder_travel_with_the_layer_also_in_a_secure_sum(
    finished_run: FinishedRun,
) -> None:
    """histology has two holders, whose layers are added in secret."""
    secret = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
    table = tiny_table(alignment={"form": "low_rank_decoder"})
    for scenario in (table, with_policies({**table, "name": "secret"}, south=secret, west=secret)):
        folder = finished_run(scenario)
        assert summary_of(folder)["complete"]["last_iou"]
        for task, loaded in load_bank(folder / "bank").items():
            updates = {n: v for n, v in weights_of(loaded.layer).items() if n.startswith("decoder_up.")}
            assert (task, len(updates)) == (task, 28)
            assert all(value.any() for value in updates.values())  # at first they are zero


def test_the_server_knows_the_shape_of_every_update_without_a_backbone() -> None:
    spec = layer_spec(form_spec("low_rank_decoder"), 256, None)
    assert not spec.open
    shapes = {name: array.shape for name, array in spec.arrays.items()}
    assert shapes["decoder_up.layers/1/self_attn/v_proj"] == (256, 1)
    assert shapes["decoder_down.final_attn_token_to_image/out_proj"] == (1, 128)


def shared_layers(folder: Path) -> list[Entry]:
    """The layer for all tasks after the first and after the second stage."""
    return [Bank.open(folder / "bank" / f"stage-{n}")["shared"] for n in (1, 2)]


def test_sequential_goes_on_from_the_layer_of_the_stage_before(finished_run: FinishedRun) -> None:
    """With a learning rate of almost nothing, the second stage ends where the first did."""
    table = tiny_table(method="sequential", alignment={"form": "low_rank", "learning_rate": 1e-12})
    folder = finished_run(table)
    first, second = shared_layers(folder)
    assert first.threshold is None  # no router chooses it
    assert verify(folder / "bank" / "stage-2") == {"bank": [], "shared": []}
    for name, value in first.layer.items():
        np.testing.assert_allclose(second.layer[name], value, atol=1e-9)


def test_elastic_weights_move_less_than_free_ones(finished_run: FinishedRun) -> None:
    def moved(method: str) -> float:
        table = tiny_table(method=method, training={"epochs": 3, "batch_images": 4})
        first, second = shared_layers(finished_run(table))
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
    folder = run(tmp_path / "run", "ewc", training={"epochs": 1, "batch_images": 4, "rounds": 2})
    first = shared_layers(folder)[0].layer
    assert len(anchors) == 4  # the second stage's two holders in two rounds; none in the first stage
    for anchor in anchors:
        for name, value in first.items():
            # The bank rounds what training goes on from exactly.
            np.testing.assert_array_equal(anchor[name].astype(value.dtype), value)


def test_joint_training_sees_the_images_of_all(finished_run: FinishedRun) -> None:
    first, second = (e["images"] for e in events(finished_run(tiny_table(method="joint")), "align"))
    # 6 polyps; then these and both holders' 6 and 7 histology images, all at one institution.
    assert (first, second) == (6, 19)


def test_a_real_site_refuses_to_pool() -> None:
    grid = InProcessGrid(1, {"out": "/tmp/x"})
    ((node, context),) = grid.contexts.items()
    context.node_config["institution"] = "north"
    request = AlignRequest(Job("north", 1, "polyp"), None, pooled=True).to_payload()
    from flwr.app import Message

    reply = client_app(Message(to_records(request), dst_node_id=node, message_type="train.align"), context)
    assert from_records(reply.content).config["outcome"] == Outcome.POOLING_REFUSED


@pytest.mark.parametrize(
    ("keeps", "trained"), [(True, ["north", "south", "west"]), (False, ["south", "west"])]
)
def test_replay_trains_along_only_where_samples_may_be_kept(
    finished_run: FinishedRun, keeps: bool, trained: list[str]
) -> None:
    table = with_policies(tiny_table(method="replay"), north={"keep_samples": keeps})
    assert summary_of(finished_run(table))["holders"]["histology"] == trained


def test_a_site_that_keeps_nothing_refuses_to_train_on_an_earlier_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server asks for, the site decides."""
    greedy = dataclasses.replace(METHODS["replay"], trainers=lambda cohort: {"north": ("polyp",)})
    monkeypatch.setitem(METHODS, "replay", greedy)
    folder = run(tmp_path / "run", "replay")
    assert [event["outcome"] for event in events(folder, "refusal")] == [Outcome.SAMPLES_NOT_KEPT]
    summary = summary_of(folder)
    assert summary["privacy"]["north"]["refusals"] == {Outcome.SAMPLES_NOT_KEPT: 1}
    assert summary["holders"] == {"polyp": ["north"], "histology": []}
