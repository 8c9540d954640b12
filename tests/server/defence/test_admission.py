"""What a server accepts: every attack on a message's form is rejected, and layers are held against peers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.protocol.limits import AnswerError
from casam_core.protocol.messages import (
    AlignRequest,
    EvaluateReply,
    Holding,
    RouterReply,
    RouterRequest,
    Sender,
    router_forms,
)
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import AGREE, SIGNATURE, SecureReply, SecureRequest
from casam_core.protocol.wire import packed
from client.evaluation.own_entries import known_entries, own_entries
from client.institution import Institution
from client.release import permission as policy
from client.simulation.adversaries import ATTACKS, Attacker
from client.site import hosted_sites
from server.defence.admission import check_answer, distance, fault_of, first_layer, peers_in, too_far
from server.federation.directory import Member
from tests.banks import tiny_backbone, tiny_entry
from tests.conftest import tiny_table

JOBS = {
    "train.align": Job("north", 1, "polyp"),
    "train.router": Job("north", 1, "polyp"),
    "evaluate.stage": Job("north", 1),
}
SUM = Job("north", 1, "polyp")


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Institution:
    # A Gaussian router has more that can be wrong: a threshold, and variances.
    scenario = Scenario.model_validate(tiny_table(admission={"megabytes": 1}, router={"kind": "gaussian"}))
    folder = tmp_path_factory.mktemp("admission")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        node = {"partition-id": 0, "num-partitions": 1}
        site = hosted_sites(scenario, "run", node, {"out": str(folder)})[0]
    return Institution(site, scenario, tiny_backbone())


@pytest.fixture(scope="module")
def answers(north: Institution) -> dict[str, Payload]:
    """One honest answer of each kind that is attacked."""
    empty = known_entries(north, own_entries(north))
    return {
        "train.align": policy.align(north, AlignRequest(JOBS["train.align"], None)).to_payload(),
        "train.router": policy.describe(north, RouterRequest(JOBS["train.router"], alone=True)).to_payload(),
        "evaluate.stage": north.evaluate(empty).to_payload(),
    }


def checked(north: Institution, kind: str, answer: Payload) -> None:
    member = Member(1, north.holdings(), Policy())
    size = sum(len(str(value)) for value in answer.config.values())
    check_answer(north.scenario, member, kind, asked(kind), answer, size)


def asked(kind: str) -> Payload:
    """The question."""
    if kind == "train.router":
        return RouterRequest(JOBS[kind], alone=True).to_payload()
    if kind == "train":
        return SecureRequest(SUM, "train.align", AGREE, packed(ConfigRecord()), Payload({})).to_payload()
    return Payload(JOBS.get(kind, SUM).config())


@pytest.mark.parametrize("kind", JOBS)
def test_honest_answers_count(north: Institution, answers: dict[str, Payload], kind: str) -> None:
    checked(north, kind, answers[kind])


@pytest.mark.parametrize(
    ("attack", "kind", "why"),
    [
        ("nan", "train.align", "finite"),
        ("infinite", "train.align", "finite"),
        ("wrong-shape", "train.align", r"expected float32 \("),
        ("wrong-dtype", "train.align", "found float64"),
        ("many-images", "train.align", "num-examples: expected a count"),
        ("oversized", "train.align", r"expected at most 1000000 \(admission.megabytes\)"),
        ("garbage", "train.align", "'noise' is not on the list"),
        ("infinite-threshold", "train.router", "threshold: expected a finite number"),
        ("impossible-metrics", "evaluate.stage", "iou: expected a value 0..1"),
    ],
)
def test_an_answer_of_another_form_is_rejected(
    north: Institution, answers: dict[str, Payload], attack: str, kind: str, why: str
) -> None:
    attacker = Attacker(north, kind, JOBS[kind], np.random.default_rng(0))
    with pytest.raises(AnswerError, match=why):
        checked(north, kind, ATTACKS[attack](attacker, answers[kind]))


def test_settings_of_another_kind_are_rejected(north: Institution, answers: dict[str, Payload]) -> None:
    for value in ("x", float("nan"), -1.0):
        odd = replace(answers["train.align"], config={"epsilon-train": value})
        with pytest.raises(AnswerError, match="setting 'epsilon-train' does not have its form"):
            checked(north, "train.align", odd)


def test_a_router_must_answer_what_was_asked(north: Institution, answers: dict[str, Payload]) -> None:
    """A summary where the finished router is wanted would break every later score; so would no threshold."""
    summary = north.router_statistics(JOBS["train.router"]).to_payload()
    with pytest.raises(AnswerError):
        checked(north, "train.router", summary)
    images = answers["train.router"].metrics["router-facts"]["num-examples"]
    bare = replace(answers["train.router"], metrics={"router-facts": {"num-examples": images}})
    with pytest.raises(AnswerError, match="expected a threshold"):
        checked(north, "train.router", bare)
    member = Member(1, north.holdings(), Policy())
    together = RouterRequest(JOBS["train.router"], alone=False).to_payload()
    check_answer(north.scenario, member, "train.router", together, summary, 100)
    for wrong in (answers["train.router"], replace(summary, arrays={"router": summary.arrays["router"]})):
        with pytest.raises(AnswerError):
            check_answer(north.scenario, member, "train.router", together, wrong, 100)


def test_nobody_may_choose_a_threshold_if_all_tasks_have_one() -> None:
    scenario = Scenario.model_validate(tiny_table())
    state = {"mean_K": np.zeros(32, np.float32), "noise": np.zeros(1, np.float32)}
    member = Member(1, {"polyp": Holding(6, 2, 4)}, Policy())
    request = RouterRequest(JOBS["train.router"], alone=True).to_payload()
    honest, chosen = (RouterReply(state, 6, threshold).to_payload() for threshold in (None, 1e6))
    check_answer(scenario, member, "train.router", request, honest, 100)
    with pytest.raises(AnswerError, match="threshold is not on the list"):
        check_answer(scenario, member, "train.router", request, chosen, 100)
    claimed = RouterReply({**state, "noise": np.float32([-1.0])}, 6).to_payload()
    with pytest.raises(AnswerError, match="noise: expected values from 0"):
        check_answer(scenario, member, "train.router", request, claimed, 100)


def test_a_variance_that_is_none_is_rejected(north: Institution, answers: dict[str, Payload]) -> None:
    router = dict(answers["train.router"].arrays["router"])
    router["diagonal_F"] = -router["diagonal_F"]
    member = Member(1, north.holdings(), Policy())
    odd = replace(answers["train.router"], arrays={"router": router})
    with pytest.raises(AnswerError):
        check_answer(north.scenario, member, "train.router", asked("train.router"), odd, 100)
    finished, _ = router_forms(
        Sender(north.scenario, north.holdings(), Policy(), 32, None, JOBS["train.router"])
    )
    with pytest.raises(AnswerError, match="diagonal_F: expected values from"):
        finished.check("router", router)


def test_counts_cannot_wrap_round(north: Institution) -> None:
    counts = np.zeros(4096, np.int64)
    counts[:2] = 2**62
    odd = Payload({"outcome": "ok"}, {"histogram": {"counts": counts}})
    member = Member(1, north.holdings(), Policy())
    with pytest.raises(AnswerError, match="counts of at most"):
        check_answer(north.scenario, member, "train.calibrate", asked("train.align"), odd, 100)


@pytest.mark.parametrize("attack", ["scaled", "sign-flipped", "random", "boosted"])
def test_wrong_weights_of_the_right_form_pass_the_list(
    north: Institution, answers: dict[str, Payload], attack: str
) -> None:
    """Only peers, canaries and robust means can tell them."""
    attacker = Attacker(north, "train.align", JOBS["train.align"], np.random.default_rng(0))
    changed = ATTACKS[attack](attacker, answers["train.align"])
    checked(north, "train.align", changed)
    start = first_layer(north.scenario, "polyp")
    assert start is not None
    honest = distance(answers["train.align"].arrays["layer"], start)
    factor = {"scaled": 5.0, "sign-flipped": 1.0, "boosted": 100.0}.get(attack)
    if factor is not None:
        assert distance(changed.arrays["layer"], start) == pytest.approx(factor * honest, rel=1e-3)


def test_a_distance_is_euclidean_over_all_weights() -> None:
    start = {"a": np.array([0.0, 1.0], np.float32), "b": np.array([[2.0]], np.float32)}
    layer = {"a": np.array([2.0, 1.0], np.float32), "b": np.array([[5.0]], np.float32)}
    assert distance(layer, start) == pytest.approx(np.sqrt(13))


def test_three_holders_judge_each_other_and_two_are_judged_by_other_tasks() -> None:
    round_of_three = {"north": 1.0, "south": 1.2, "west": 13.0}
    assert list(too_far(round_of_three, [], 10.0)) == ["west"]  # the median is 1.2
    assert too_far(round_of_three, [], 11.0) == {}
    round_of_two = {"north": 1.0, "west": 13.0}
    assert too_far(round_of_two, [], 10.0) == {}  # nobody says which of them is odd
    assert list(too_far(round_of_two, [1.0, 1.1], 10.0)) == ["west"]
    assert too_far(round_of_three, [1.0], None) == {}
    assert too_far({"north": 5.0}, [0.0, 0.0], 10.0) == {}
    # A single other task is no measure: its layer may have hardly moved.
    assert too_far({"north": 1.0}, [0.001], 10.0) == {}


def test_peers_are_layers_of_the_same_form(tmp_path: Path) -> None:
    scenario = Scenario.model_validate(tiny_table())
    start = first_layer(scenario, "histology")
    assert start is not None
    moved = {name: array + np.float32(1) for name, array in start.items()}
    weights = sum(array.size for array in start.values())
    bank = Bank.open(tmp_path / "bank", create=True)
    entry = tiny_entry("histology")
    about = replace(entry.provenance, form="low_rank", rank=8)
    bank.add(replace(entry, layer=moved, provenance=about))
    bank.add(replace(tiny_entry("other"), provenance=replace(about, form="residual")))
    assert peers_in(bank, scenario, "polyp") == pytest.approx([np.sqrt(weights)])
    again = peers_in(bank, scenario, "histology")
    assert again == pytest.approx([np.sqrt(weights)]), "its old layer, if it is learned again"


def test_a_copy_is_found_at_sight(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path / "bank", create=True)
    original = tiny_entry("polyp")
    bank.add(original)
    thief = replace(original.provenance, holders=("thief",))
    copied = replace(original, task="new", provenance=thief)
    assert fault_of(copied, bank) == "its layer is a copy of polyp's"
    other_layer = {name: array + np.float32(1) for name, array in original.layer.items()}
    assert fault_of(replace(copied, layer=other_layer), bank) == "its router is a copy of polyp's"
    assert fault_of(replace(original, task="new"), bank) is None  # of its own holder
    other_router = {name: array + np.float32(1) for name, array in original.router.items()}
    assert fault_of(replace(copied, layer=other_layer, router=other_router), bank) is None


@pytest.mark.parametrize("value", ["abc", float("nan"), float("inf"), -5.0])
def test_an_exchange_of_a_secure_sum_tells_no_impossible_budget(north: Institution, value: Any) -> None:
    reply = SecureReply("train.align", AGREE, packed(ConfigRecord({SIGNATURE: bytes(64)}))).to_payload()
    checked(north, "train", reply)
    with pytest.raises(AnswerError, match="setting 'epsilon-train' does not have its"):
        checked(north, "train", replace(reply, config={**reply.config, "epsilon-train": value}))
    with pytest.raises(AnswerError, match="setting 'note' is not on the list"):
        checked(north, "train", replace(reply, config={**reply.config, "note": "x"}))


@pytest.mark.parametrize("missing", ["images", "iou", "dice"])
def test_scores_without_a_figure_that_always_leaves_cannot_be_read(
    answers: dict[str, Payload], missing: str
) -> None:
    answer = answers["evaluate.stage"]
    scores = {key: value for key, value in answer.metrics["score.polyp"].items() if key != missing}
    with pytest.raises(KeyError, match=missing):
        EvaluateReply.of(replace(answer, metrics={**answer.metrics, "score.polyp": scores}))
    with pytest.raises(KeyError, match="decodes"):
        EvaluateReply.of(replace(answer, metrics={**answer.metrics, "work": {}}))


def test_a_router_reply_that_cannot_be_read_is_rejected_and_so_logged(
    north: Institution, answers: dict[str, Payload]
) -> None:
    with pytest.raises(AnswerError, match="'images' is missing"):
        checked(north, "train.router", replace(answers["train.router"], metrics={}))
