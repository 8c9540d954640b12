"""Secure sums in whole runs: the same numbers, nothing in the open, never fewer than a policy asks for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from scipy.stats import kstest

import client.secagg.member
from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.secure_sum import COLLECT, MODULUS, STEPS_OF_A_SUM, SecureReply, SecureRequest
from casam_core.protocol.wire import from_records, unpacked
from client.institution import Institution
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from tests.conftest import phantom, tiny_table

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")


def run(folder: Path, names: str, policy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Summary of a run in which each of `names` holds the one task, under one policy."""
    sites = [{"name": name, "data": {"polyp": phantom("polyp", 8)}, "policy": policy} for name in names]
    table = tiny_table(stream=["polyp"], institutions=sites, **changes)
    run_inprocess(Scenario.model_validate(table), folder, None)
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def gone_at(step: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one institution fail in one exchange of every sum."""
    whole = client.secagg.member.take_part

    def part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
        if institution.name == name and request.step == step:
            raise OSError("the power went")
        return whole(institution, request, context)

    monkeypatch.setattr("client.client_app.take_part", part)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """What three institutions learn in the open."""
    folder = tmp_path_factory.mktemp("open") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(tmp_path_factory.mktemp("home")))
        run(folder, "abc", {})
    return Bank.open(folder / "bank")


def distance(one: Bank, other: Bank) -> float:
    """Largest difference of any weight."""
    a, b = one["polyp"].layer, other["polyp"].layer
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_three_institutions_learn_what_they_would_learn_in_the_open(tmp_path: Path, opened: Bank) -> None:
    summary = run(tmp_path / "run", "abc", SECRET)
    bank = Bank.open(tmp_path / "run" / "bank")
    assert distance(bank, opened) < 1e-6
    one, other = bank["polyp"], opened["polyp"]
    np.testing.assert_allclose(one.router["mean_K"], other.router["mean_K"], atol=1e-6)
    assert one.threshold == other.threshold
    assert one.provenance.holders == ("a", "b", "c")
    assert one.provenance.images == other.provenance.images
    hidden = {"server": 3, "co_holder": 2}
    for name in "abc":
        assert summary["privacy"][name]["anonymity"] == {"adapter": hidden, "router": hidden}
        assert summary["privacy"][name]["refusals"] == {}


@pytest.mark.parametrize("names", ["ab", "a"])
def test_a_cohort_below_the_minimum_is_refused_and_never_open(tmp_path: Path, names: str) -> None:
    summary = run(tmp_path / "run", names, SECRET)
    assert summary["holders"] == {"polyp": []}
    assert Bank.open(tmp_path / "run" / "bank").tasks == ()
    for name in names:
        assert summary["privacy"][name]["refusals"] == {Outcome.COHORT_TOO_SMALL: 1}
        own = tmp_path / "run" / "institutions" / name / "private" / "own-entries"
        assert Bank.open(own).tasks == ("polyp",)


def test_a_careful_member_leaves_and_the_others_still_add_up(tmp_path: Path) -> None:
    sites = [
        {
            "name": name,
            "data": {"polyp": phantom("polyp", 8)},
            "policy": {**SECRET, "minimum_cohort": 5 if name == "d" else 3},
        }
        for name in "abcd"
    ]
    table = tiny_table(stream=["polyp"], institutions=sites)
    run_inprocess(Scenario.model_validate(table), tmp_path / "run", None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["holders"] == {"polyp": ["a", "b", "c"]}
    assert summary["privacy"]["d"]["refusals"] == {Outcome.COHORT_TOO_SMALL: 1}


def test_ten_institutions_add_up(tmp_path: Path) -> None:
    names = "".join(NAMES)
    run(tmp_path / "sum", names, {"adapter": {"aggregation": "secagg"}, "router": {"share": "never"}})
    run(tmp_path / "open", names, {"router": {"share": "never"}})
    assert distance(Bank.open(tmp_path / "sum" / "bank"), Bank.open(tmp_path / "open" / "bank")) < 1e-6


def test_one_of_four_can_drop_out_after_it_shared_its_keys(
    tmp_path: Path, opened: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_at(COLLECT, "d", monkeypatch)
    summary = run(tmp_path / "run", "abcd", SECRET)
    bank = Bank.open(tmp_path / "run" / "bank")
    assert bank["polyp"].provenance.holders == ("a", "b", "c")
    assert distance(bank, opened) < 1e-6
    assert summary["privacy"]["a"]["anonymity"]["adapter"] == {"server": 3, "co_holder": 2}


@pytest.mark.parametrize("step", STEPS_OF_A_SUM)
def test_of_three_nobody_may_drop_out(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone_at(step, "c", monkeypatch)
    with pytest.raises(Exception, match="no holder of task 'polyp' could train"):
        run(tmp_path / "run", "abc", SECRET)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_value_that_a_sum_would_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.secagg.member.RANGE", 1e-3)
    monkeypatch.setattr("server.federation.secagg.RANGE", 1e-3)
    summary = run(tmp_path / "run", "abc", SECRET)
    assert summary["holders"] == {"polyp": []}
    assert {Outcome.OUT_OF_RANGE} & set(summary["privacy"]["a"]["refusals"])


def test_a_router_that_cannot_be_added_is_refused(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", "abc", SECRET, router={"kind": "vae", "epochs": 1})
    assert summary["privacy"]["a"]["refusals"] == {Outcome.SUM_NOT_POSSIBLE: 1}
    assert Bank.open(tmp_path / "run" / "bank")["polyp"].threshold is None


def test_on_the_wire_there_are_masks_only(
    tmp_path: Path, opened: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Message] = []
    deliver = InProcessGrid._deliver

    def recorded(self: InProcessGrid, message: Message) -> str:
        message_id = deliver(self, message)
        replies.append(self._replies[message_id])
        return message_id

    monkeypatch.setattr(InProcessGrid, "_deliver", recorded)
    run(tmp_path / "run", "abc", SECRET)
    kinds = {reply.metadata.message_type for reply in replies}
    assert kinds == {"query.identify", "train", "evaluate.stage"}  # exactly `train`, nothing openly trained
    masked = []
    for reply in replies:
        payload = from_records(reply.content)
        if reply.metadata.message_type == "train":
            assert {array.dtype for group in payload.arrays.values() for array in group.values()} == {
                np.dtype(np.uint8)
            }
            assert payload.metrics == {}
            if COLLECT in payload.arrays:
                masked.append(unpacked(SecureReply.of(payload).protocol)["masked_params"])
    assert len(masked) == 6  # three members; layer, router
    values = np.concatenate([np.load(io.BytesIO(part)).ravel() for share in masked for part in share[1:]])
    assert kstest(values[:: max(1, len(values) // 5000)] / MODULUS, "uniform").pvalue > 1e-3


def test_a_secure_sum_is_made_anew_with_the_same_numbers_and_other_masks(tmp_path: Path) -> None:
    summaries = [run(tmp_path / name, "abc", SECRET) for name in ("one", "other")]
    assert summaries[0]["matrix"] == summaries[1]["matrix"]
    banks = [Bank.open(tmp_path / name / "bank").digest for name in ("one", "other")]
    assert banks[0] == banks[1]
    logs = [
        (tmp_path / name / "institutions" / "a" / "private" / "audit.jsonl").read_text()
        for name in ("one", "other")
    ]
    digests = [
        {json.loads(line)["digest"] for line in log.splitlines() if '"kind": "train"' in log} for log in logs
    ]
    shared = digests[0] & digests[1]
    assert len(shared) <= 4  # who is there and scores; every key, share and mask is new
