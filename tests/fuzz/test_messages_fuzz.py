"""Records of any name, type and shape: the server reads or sets aside, the client answers with a word."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.protocol.limits import AnswerError
from casam_core.protocol.messages import (
    AlignReply,
    CalibrateReply,
    EvaluateReply,
    ForgetReply,
    Holding,
    IdentifyReply,
    RouterReply,
)
from casam_core.protocol.outcomes import WORDS
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import SecureReply
from casam_core.protocol.wire import CONFIG, from_records, to_records
from client.client_app import app
from client.institution import Institution
from client.release.guard import NotAllowedError, check, check_identity
from client.site import hosted_sites
from scenarios.engines.inprocess import InProcessGrid, set_id
from server.defence.admission import check_answer
from server.federation.counters import Traffic
from server.federation.directory import Member
from server.federation.exchange import read
from tests.banks import tiny_backbone
from tests.conftest import tiny_table
from tests.fuzz.damage import examples

ARRAY_NAMES = st.sampled_from(["layer", "router", "fold-0", "histogram", "margins", "importance", "x"])
NUMBER_NAMES = st.sampled_from(
    ["align", "router-facts", "score.polyp", "route.polyp", "statistics.polyp", "canary", "work", "y"]
)
NAMES = ARRAY_NAMES | NUMBER_NAMES
SETTINGS = (
    "outcome",
    "institution",
    "stage",
    "task",
    "round",
    "tasks",
    "known",
    "bank",
    "candidates",
    "alone",
)
PARTS = ("counts", "down", "up", "scale", "mean_F", "entries", "sum", "step", "protocol", "names", "y")
FIGURES = ("num-examples", "threshold", "images", "iou", "failed")
KEYS = st.sampled_from([*SETTINGS, *PARTS, *FIGURES])
SCALARS = st.integers(-(2**40), 2**40) | st.floats() | st.booleans() | st.text(max_size=12) | st.just("ok")
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
)
PAYLOADS = st.builds(
    Payload,
    st.dictionaries(KEYS, SCALARS, max_size=6).map(lambda config: {"outcome": "ok", **config}),
    st.dictionaries(ARRAY_NAMES, st.dictionaries(KEYS, ARRAYS, max_size=3), max_size=3),
    st.dictionaries(
        NUMBER_NAMES,
        st.dictionaries(KEYS, st.integers(-(2**40), 2**40) | st.floats(), max_size=4),
        max_size=3,
    ),
)
JOB = Job("north", 1, "polyp")
ASKED = Payload({**JOB.config(), "alone": True})
READERS: dict[str, Any] = {
    "train.align": AlignReply.of,
    "train.router": RouterReply.of,
    "train.calibrate": CalibrateReply.of,
    "evaluate.stage": EvaluateReply.of,
    "query.forget": ForgetReply.of,
    "query.identify": IdentifyReply.of,
    "train": SecureReply.of,
}


@st.composite
def records(draw: st.DrawFn) -> RecordDict:
    """What Flower can carry, and we would never send."""
    found: dict[str, Any] = {}
    for name in draw(st.lists(NAMES | st.just(CONFIG), max_size=4, unique=True)):
        kind = draw(st.sampled_from(["config", "array", "metric"]))
        if kind == "config":
            values: Any = draw(
                st.dictionaries(
                    KEYS, SCALARS | st.binary(max_size=8) | st.lists(st.integers(-9, 9)), max_size=4
                )
            )
            found[name] = ConfigRecord(values)
        elif kind == "array":
            group = draw(st.dictionaries(KEYS, ARRAYS, max_size=3))
            found[name] = ArrayRecord({key: Array(value) for key, value in group.items()})
        else:
            numbers: Any = draw(st.dictionaries(KEYS, st.floats() | st.integers(-9, 9), max_size=4))
            found[name] = MetricRecord(numbers)
    return RecordDict(found)


def arrived(content: RecordDict, kind: str) -> Message:
    """An answer as the server pulls it."""
    InProcessGrid(1, {})  # lets Message() know who is sending
    question = Message(RecordDict(), dst_node_id=1, message_type=kind)
    set_id(question)
    return Message(content, reply_to=question)


@pytest.mark.parametrize("kind", READERS)
@given(content=records() | PAYLOADS.map(to_records))
@examples(15, 300)
def test_the_server_reads_or_sets_aside(kind: str, content: RecordDict) -> None:
    """`read` never raises, and what it calls a result was read whole."""
    member = Member(1, {"polyp": Holding(6, 2, 4)}, Policy())
    scenario = Scenario.model_validate(tiny_table())

    def looked_at(to: str, payload: Payload, size: int) -> None:
        check_answer(scenario, member, kind, ASKED, payload, size)

    answer = read("north", arrived(content, kind), Traffic(), READERS[kind], looked_at)
    assert answer.ok == (answer.reply is not None)
    assert answer.outcome in (*WORDS, "unreadable", "rejected")


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Institution:
    scenario = Scenario.model_validate(tiny_table())
    folder = tmp_path_factory.mktemp("fuzz-messages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        site = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(folder)})[
            0
        ]
    return Institution(site, scenario, tiny_backbone())


@pytest.mark.parametrize("kind", READERS)
@given(payload=PAYLOADS)
@examples(15, 300)
def test_the_guard_lets_out_or_raises_by_name(kind: str, payload: Payload, north: Institution) -> None:
    with contextlib.suppress(NotAllowedError):
        if kind == "query.identify":
            check_identity(kind, payload, [north])
        else:
            check(kind, payload, north, JOB)


@pytest.mark.parametrize("kind", [*READERS, "train.unknown", "query"])
@given(content=records() | PAYLOADS.map(to_records))
@examples(10, 200)
def test_any_question_is_answered_with_one_word(
    kind: str, content: RecordDict, tmp_path_factory: Any
) -> None:
    """A node that nobody identified: no exception leaves it, and no text but a word and a number."""
    folder = Path(tmp_path_factory.getbasetemp()) / "fuzz-node"
    context = Context(
        run_id=1,
        node_id=7,
        node_config={"partition-id": 0, "num-partitions": 1},
        state=RecordDict(),
        run_config={"out": str(folder)},
    )
    InProcessGrid(1, {})
    question = Message(content, dst_node_id=7, message_type=kind)
    set_id(question)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        answer = app(question, context)
    config = from_records(answer.content).config
    assert config["outcome"] in WORDS
    assert set(config) <= {"outcome", "incident", "code"}


@given(PAYLOADS)
@examples(30, 400)
def test_what_is_sent_is_what_arrives(payload: Payload) -> None:
    again = from_records(to_records(payload))
    assert again.config.keys() == payload.config.keys()
    assert again.arrays.keys() == payload.arrays.keys()


def test_the_list_can_say_no(north: Institution) -> None:
    member = Member(1, north.holdings(), Policy())
    odd = Payload({"outcome": "ok"}, {"layer": {"x": np.zeros(3, np.float32)}})
    with pytest.raises(AnswerError):
        check_answer(north.scenario, member, "train.align", ASKED, odd, 100)
