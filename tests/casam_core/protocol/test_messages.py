"""Messages: every one survives its payload, and the payload survives Flower's records and bytes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.protocol import messages, wire
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetReply,
    ForgetRequest,
    Holding,
    IdentifyReply,
    IdentifyRequest,
    RouterReply,
    RouterRequest,
    TaskResult,
)
from casam_core.protocol.outcomes import REFUSALS, WORDS, Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.schema import Message

JOB = Job(institution="north", stage=3, task="polyp", round=2)
LAYER = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "conv.bias": np.array([-0.0, 1e-38, np.float32(0.1)], np.float32),
}
STATE = {
    "mean_F": np.linspace(0, 1, 5).astype(np.float32),
    "directions_KF": np.zeros((0, 5), np.float32),  # one image has no directions
}
SUMMARY = {"count": np.array([3.0]), "sum_F": np.array([1 / 3, 2e300]), "outer_FF": np.eye(2)}
RESULT = TaskResult(
    images=7,
    instances=21,
    iou=0.3333,
    dice=0.5,
    biou=0.25,
    biou_official=0.125,
    iou_instance=0.3,
    hd95=12.5,
    routes={"identity": 2, "polyp": 5},
)

SURE = dataclasses.replace(
    RESULT, statistics=Statistics(3, Estimate(0.5, 0.1, 0.4, 0.6), Estimate(mean=-0.125))
)

EXAMPLES: list[Any] = [
    JOB,
    Job(institution="north", stage=1),
    IdentifyRequest.telling('{"name":"süd"}', run="2026-01-01-quickstart", code="0123456789abcdef"),
    IdentifyRequest.telling('{"name":"süd"}', run="2026-01-01-quickstart", code="0123456789abcdef").short(),
    IdentifyReply(
        code="0123456789abcdef", backbone="b" * 64, compute="cpu-float32-t1", institutions={}, policies={}
    ),
    IdentifyReply(
        code="0123456789abcdef",
        backbone="b" * 64,
        compute="cpu-float32-t1",
        institutions={"north": {"polyp": Holding(9, 2, 3), "heart": Holding(1, 0, 0)}, "west": {}},
        policies={"north": Policy(adapter=LearnedPolicy(share="never"), leaves_at=4), "west": Policy()},
        preprocessing="0123456789abcdef",
        schema=7,
    ),
    AlignRequest(JOB, None),
    AlignRequest(JOB, LAYER),
    AlignRequest(JOB, LAYER, tasks=("polyp", "liver"), anchor=LAYER, importance=LAYER, pooled=True),
    AlignReply(LAYER, images=12),
    AlignReply(LAYER, images=12, importance=LAYER),
    AlignReply(LAYER, images=12, improved=True),
    AlignReply(LAYER, images=12, improved=False),
    AlignReply(LAYER, images=12, improved=True, correction=-0.12),
    RouterRequest(JOB, alone=True),
    RouterRequest(JOB, alone=False),
    RouterReply(STATE, images=12, threshold=-0.5),
    RouterReply(STATE, images=1, threshold=0.0),
    RouterReply(SUMMARY, images=12, folds=[SUMMARY, STATE]),
    RouterReply(SUMMARY, images=12, folds=[{"w": np.full(2, k)} for k in range(12)]),  # 10 sorts before 2
    CalibrateRequest(JOB, folds=[STATE, STATE]),
    CalibrateRequest(JOB, folds=[]),
    CalibrateReply(np.array([0, 3, 2**40])),
    EvaluateRequest(JOB, known=0, entries=[], bank="d" * 64),
    EvaluateRequest(JOB, known=2, entries=[b"first\x00\xff", b"second"], bank="d" * 64),
    EvaluateRequest(JOB, known=2, entries=[bytes([k]) for k in range(12)], bank="d" * 64),
    ForgetRequest(JOB, "north", ("a" * 64, "b" * 64)),
    ForgetReply("b" * 128),
    EvaluateReply({}, decodes=0),
    EvaluateReply({"polyp": SURE}, decodes=1, margins={"polyp": np.array([0, 2, 5])}),
    EvaluateReply({"polyp": RESULT, "heart-2": dataclasses.replace(RESULT, hd95=None, routes={})}, decodes=9),
]


def payload_of(message: Any) -> Payload:
    return Payload(message.config()) if isinstance(message, Job) else message.to_payload()


def over_the_wire(payload: Payload) -> Payload:
    return wire.from_records(wire.deserialise(wire.serialise(wire.to_records(payload))))


def same(one: Any, other: Any) -> bool:
    """Equal values of equal types; arrays by dtype, shape and bits."""
    if isinstance(one, np.ndarray):
        if not isinstance(other, np.ndarray):
            return False
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one):
        pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_survives_its_payload(message: Any) -> None:
    assert same(type(message).of(payload_of(message)), message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire_bit_for_bit(message: Any) -> None:
    assert same(type(message).of(over_the_wire(payload_of(message))), message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused_when_it_arrives(value: float) -> None:
    """Else it would end the run at its last file, summary.json."""
    reply = EvaluateReply({"polyp": dataclasses.replace(RESULT, iou=value)}, decodes=1)
    with pytest.raises(ValueError, match="finite"):
        EvaluateReply.of(reply.to_payload())


def test_every_message_there_is_has_an_example_here() -> None:
    classes = {cls for _, cls in inspect.getmembers(messages, inspect.isclass) if issubclass(cls, Message)}
    assert classes - {Message} | {Job} == {type(message) for message in EXAMPLES}


def test_every_request_after_identify_carries_its_job() -> None:
    for message in EXAMPLES:
        if hasattr(message, "job"):
            assert Job.of(over_the_wire(message.to_payload())) == JOB


def test_the_weights_travel_in_the_shape_flowers_strategies_aggregate() -> None:
    records = wire.to_records(AlignReply(LAYER, images=12).to_payload())
    assert list(records.array_records) == ["layer"]
    assert records.metric_records["align"]["num-examples"] == 12


def test_outcomes_are_a_closed_list_of_different_words() -> None:
    assert len(WORDS) == len(Outcome.__members__)  # a word that stands twice would be an alias
    assert REFUSALS < WORDS
    assert {str(outcome) for outcome in Outcome if outcome.learns_alone} < REFUSALS


# --- The wire --------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=10)
SCALARS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(),
)
ARRAYS = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).integers(0, 99, shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["float16", "float32", "float64", "int64", "int32", "uint8", "bool"]),
    st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(
    config=st.dictionaries(NAMES, SCALARS, max_size=4),
    arrays=st.dictionaries(NAMES.map("a.{}".format), st.dictionaries(NAMES, ARRAYS, max_size=3), max_size=3),
    metrics=st.dictionaries(
        NAMES.map("m.{}".format),
        st.dictionaries(NAMES, st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1), max_size=3),
        max_size=3,
    ),
)
def test_any_payload_survives_the_wire(config: Any, arrays: Any, metrics: Any) -> None:
    sent = Payload(config, arrays, metrics)
    received = over_the_wire(sent)
    assert same(received.arrays, sent.arrays)
    assert same(received.metrics, sent.metrics)
    assert received.config.keys() == sent.config.keys()
    for key, value in sent.config.items():
        assert same(received.config[key], value) or (value != value and received.config[key] != value)


def test_a_view_with_gaps_travels_as_its_values() -> None:
    view = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2].T
    received = over_the_wire(Payload({}, {"group": {"view": view}}))
    assert np.array_equal(received.arrays["group"]["view"], view)


def test_equal_payloads_are_equal_bytes() -> None:
    payloads = [AlignRequest(JOB, {k: v.copy() for k, v in LAYER.items()}).to_payload() for _ in range(2)]
    one, other = (wire.serialise(wire.to_records(payload)) for payload in payloads)
    assert one == other
    assert len(one) > sum(value.nbytes for value in LAYER.values())


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share the name.*twice"):
        wire.to_records(Payload({}, {"twice": {}}, {"twice": {}}))


@pytest.mark.parametrize("kind", ["arrays", "metrics"])
def test_a_group_that_would_replace_the_settings_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="config"):
        wire.to_records(Payload({}, **{kind: {"config": {}}}))
