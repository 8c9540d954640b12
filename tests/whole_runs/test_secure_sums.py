"""Secure sums in whole runs: the same numbers, nothing in the open, never fewer than a policy asks for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from scipy.stats import kstest

import client.secagg.member
from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.protocol.audit import read_log
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.secure_sum import COLLECT, MODULUS, STEPS_OF_A_SUM, SecureReply, SecureRequest
from casam_core.protocol.wire import from_records, unpacked
from client.institution import Institution
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from tests.conftest import phantom, tiny_table
from tests.runs import FinishedRun, private, summary_of

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")


def in_sums(names: str, policy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A scenario in which each of `names` holds the one task, under one policy."""
    sites = [{"name": name, "data": {"polyp": phantom("polyp", 8)}, "policy": policy} for name in names]
    return tiny_table(stream=["polyp"], institutions=sites, **changes)


def run(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Run it; its summary."""
    run_inprocess(Scenario.model_validate(table), folder, None)
    return summary_of(folder)


def gone_at(step: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one institution fail in one exchange of every sum."""
    whole = client.secagg.member.take_part

    def part(institution: Institution, request: SecureRequest, context: Context) -> SecureReply:
        if institution.name == name and request.step == step:
            raise OSError("the power went")
        return whole(institution, request, context)

    monkeypatch.setattr("client.client_app.take_part", part)


@pytest.fixture
def opened(finished_run: FinishedRun) -> Bank:
    """What three institutions learn in the open."""
    return Bank.open(finished_run(in_sums("abc", {})) / "bank")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Message]]:
    """A run of the same in secure sums, and all that the server was answered."""
    replies: list[Message] = []
    deliver = InProcessGrid._deliver

    def recording(self: InProcessGrid, message: Message) -> str:
        message_id = deliver(self, message)
        replies.append(self._replies[message_id])
        return message_id

    folder = tmp_path_factory.mktemp("sums") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(InProcessGrid, "_deliver", recording)
        run(folder, in_sums("abc", SECRET))
    return folder, replies


def distance(one: Bank, other: Bank) -> float:
    """Largest difference of any weight."""
    a, b = one["polyp"].layer, other["polyp"].layer
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_three_institutions_learn_what_they_would_learn_in_the_open(
    finished_run: FinishedRun, opened: Bank
) -> None:
    folder = finished_run(in_sums("abc", SECRET))
    summary, bank = summary_of(folder), Bank.open(folder / "bank")
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
    summary = run(tmp_path / "run", in_sums(names, SECRET))
    assert summary["holders"] == {"polyp": []}
    assert Bank.open(tmp_path / "run" / "bank").tasks == ()
    for name in names:
        assert summary["privacy"][name]["refusals"] == {Outcome.COHORT_TOO_SMALL: 1}
        own = tmp_path / "run" / "institutions" / name / "private" / "own-entries"
        assert Bank.open(own).tasks == ("polyp",)


def test_a_careful_member_leaves_and_the_others_still_add_up(tmp_path: Path) -> None:
    table = in_sums("abcd", SECRET)
    table["institutions"][-1]["policy"] = {**SECRET, "minimum_cohort": 5}
    summary = run(tmp_path / "run", table)
    assert summary["holders"] == {"polyp": ["a", "b", "c"]}
    assert summary["privacy"]["d"]["refusals"] == {Outcome.COHORT_TOO_SMALL: 1}


def test_ten_institutions_add_up(tmp_path: Path) -> None:
    names = "".join(NAMES)
    secret = {"adapter": {"aggregation": "secagg"}, "router": {"share": "never"}}
    run(tmp_path / "sum", in_sums(names, secret))
    run(tmp_path / "open", in_sums(names, {"router": {"share": "never"}}))
    assert distance(Bank.open(tmp_path / "sum" / "bank"), Bank.open(tmp_path / "open" / "bank")) < 1e-6


def test_one_of_four_can_drop_out_after_it_shared_its_keys(
    tmp_path: Path, opened: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_at(COLLECT, "d", monkeypatch)
    summary = run(tmp_path / "run", in_sums("abcd", SECRET))
    bank = Bank.open(tmp_path / "run" / "bank")
    assert bank["polyp"].provenance.holders == ("a", "b", "c")
    assert distance(bank, opened) < 1e-6
    assert summary["privacy"]["a"]["anonymity"]["adapter"] == {"server": 3, "co_holder": 2}


@pytest.mark.parametrize("step", STEPS_OF_A_SUM)
def test_of_three_nobody_may_drop_out(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone_at(step, "c", monkeypatch)
    with pytest.raises(Exception, match="no holder of task 'polyp' could train"):
        run(tmp_path / "run", in_sums("abc", SECRET))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_value_that_a_sum_would_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.secagg.member.RANGE", 1e-3)
    monkeypatch.setattr("server.federation.secagg.RANGE", 1e-3)
    summary = run(tmp_path / "run", in_sums("abc", SECRET))
    assert summary["holders"] == {"polyp": []}
    assert {Outcome.OUT_OF_RANGE} & set(summary["privacy"]["a"]["refusals"])


def test_a_router_that_cannot_be_added_is_refused(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", in_sums("abc", SECRET, router={"kind": "vae", "epochs": 1}))
    assert summary["privacy"]["a"]["refusals"] == {Outcome.SUM_NOT_POSSIBLE: 1}
    assert Bank.open(tmp_path / "run" / "bank")["polyp"].threshold is None


def test_on_the_wire_there_are_masks_only(recorded: tuple[Path, list[Message]]) -> None:
    _, replies = recorded
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


def test_a_secure_sum_is_made_anew_with_the_same_numbers_and_other_masks(
    finished_run: FinishedRun, recorded: tuple[Path, list[Message]]
) -> None:
    folders = finished_run(in_sums("abc", SECRET)), recorded[0]
    one, other = (summary_of(folder)["matrix"] for folder in folders)
    assert one == other
    one, other = (Bank.open(folder / "bank").digest for folder in folders)
    assert one == other
    lines = [read_log(private(folder, "a") / "audit.jsonl") for folder in folders]
    one, other = ({n.release.digest for n in log if n.release.kind == "train"} for log in lines)
    assert len(one & other) <= 4  # who is there and scores; every key, share and mask is new
