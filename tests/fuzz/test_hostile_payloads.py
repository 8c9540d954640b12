"""Foreign bytes end in a value or a named outcome, on the server's path and on a client's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from casam_core.bank.bank import Bank
from casam_core.protocol.outcomes import NoResult
from casam_core.protocol.payload import Payload
from casam_core.protocol.wire import deserialise, serialise, to_records
from scenarios.engines.inprocess import InProcessGrid, set_id
from server.federation.counters import Traffic
from server.federation.exchange import Request, exchange, read
from tests.fuzz.hostile import Path_, tried
from tests.fuzz.paths import client_paths, server_paths
from tests.server.federation.test_exchange import ASK, OK, ScriptedGrid
from tests.server.scripted import scripted

SERVER = ("align", "router alone", "router", "calibrate", "evaluate", "forget", "identify", "sum")
CLIENT = (
    "query.identify",
    "train.align",
    "train.router",
    "train.calibrate",
    "evaluate.stage",
    "query.forget",
    "train",
    "an odd entry",
)
Paths = dict[str, tuple[Payload, Path_]]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        yield {**server_paths(folder), **client_paths(folder)}


@pytest.mark.parametrize("kind", SERVER)
def test_the_server_names_what_arrives(kind: str, paths: Paths) -> None:
    words = tried(*paths[f"server: {kind}"], each=1000)
    assert {"ok", "unreadable"} <= words.keys()


@pytest.mark.parametrize("kind", CLIENT)
def test_a_client_names_what_it_is_asked(kind: str, paths: Paths) -> None:
    assert len(tried(*paths[f"client: {kind}"], each=100)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("path", [*(f"server: {k}" for k in SERVER), *(f"client: {k}" for k in CLIENT)])
def test_every_path_for_longer(path: str, paths: Paths) -> None:
    tried(*paths[path], each=5000 if path.startswith("server") else 1000, seed=1000)


@pytest.mark.parametrize("path", ["server: align", "client: train.align"])
def test_what_nobody_changed_is_a_result(path: str, paths: Paths) -> None:
    honest, end = paths[path]
    assert end(deserialise(serialise(to_records(honest)))) == "ok"


class BrokenGrid(ScriptedGrid):
    """Flower cannot rebuild the answer of node 1 from the bytes that it sent."""

    def pull_messages(self, message_ids: list[str]) -> list[Message]:  # type: ignore[override]
        found = list(super().pull_messages(message_ids))
        if any(message.metadata.src_node_id == 1 for message in found):
            raise ValueError("unexpected object")
        return found


def test_an_answer_that_flower_cannot_rebuild_is_an_outcome_and_takes_no_other_with_it() -> None:
    requests = [Request(f"site-{node}", node, "train.align", ASK) for node in (1, 2)]
    grid = BrokenGrid({1: OK, 2: OK})
    answers = exchange(grid, requests, of=lambda payload: payload, deadline=5, traffic=Traffic())
    assert [answer.outcome for answer in answers.values()] == [NoResult.UNREADABLE, "ok"]


def test_an_answer_of_another_node_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pretending(ScriptedGrid):
        def _deliver(self, message: Message) -> str:
            message_id = super()._deliver(message)
            self._replies[message_id].metadata.__dict__["_src_node_id"] = 7
            return message_id

    requests = [Request("site-1", 1, "train.align", ASK)]
    answers = exchange(Pretending({1: OK}), requests, of=lambda p: p, deadline=5, traffic=Traffic())
    assert answers["site-1"].outcome == NoResult.UNREADABLE


def arrived(payload: Payload) -> Message:
    """An answer as the server pulls it."""
    question = Message(RecordDict(), dst_node_id=1, message_type="train.align")
    set_id(question)
    return Message(to_records(payload), reply_to=question)


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[31mroot@server", "a\nb", "\x9b31m", "\u202e", "x" * 500])
def test_no_text_of_a_refusal_goes_further(text: str) -> None:
    InProcessGrid(1, {})
    for config in ({"outcome": text}, {"outcome": "failed", "code": text}, {"outcome": "failed", text: "a"}):
        answer = read("a", arrived(Payload(config)), Traffic(), lambda payload: payload)
        assert (answer.outcome, answer.payload) == (NoResult.UNREADABLE, None)
    answer = read("a", arrived(Payload({"outcome": "failed", "incident": text})), Traffic(), lambda p: p)
    assert (answer.outcome, answer.incident) == ("failed", "unnumbered")


def test_statistics_that_no_router_fits_are_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    """Finite, of the right form, and none of images: the covariance overflows in single precision."""
    tasks = {"north": ("polyp",), "south": ("polyp",), "west": ("polyp",)}
    run = scripted(tmp_path / "run", tasks, stream=["polyp"])

    def enormous(honest: Payload) -> Payload:
        arrays = {
            name: {key: a if key == "count" else a + 1e300 for key, a in group.items()}
            for name, group in honest.arrays.items()
        }
        return Payload(honest.config, arrays, honest.metrics)

    run.sites["west"].script["train.router"] = [enormous]  # type: ignore[list-item]
    summary = run.run()
    assert summary["privacy"]["west"]["rejections"] == {"train.router": 1}
    (entry,) = Bank.open(run.path / "bank")
    assert entry.threshold is not None


def test_a_count_beyond_the_images_does_not_outweigh_the_others(tmp_path: Path) -> None:
    run = scripted(tmp_path / "run", {"north": ("polyp",), "south": ("polyp",)}, stream=["polyp"])

    def heavy(honest: Payload) -> Payload:
        arrays = {name: {key: a * 1e9 for key, a in group.items()} for name, group in honest.arrays.items()}
        return Payload(honest.config, arrays, honest.metrics)

    run.sites["south"].script["train.router"] = [heavy]  # type: ignore[list-item]
    assert run.run()["privacy"]["south"]["rejections"] == {"train.router": 1}
