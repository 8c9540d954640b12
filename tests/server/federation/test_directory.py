"""Who is there: what keeps a run from starting has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from numpy.typing import NDArray

import client.client_app
import client.release.guard
import client.release.outbox
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.frame import Frame
from casam_core.protocol.compressed_text import compress_text
from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.limits import Allowed
from casam_core.protocol.messages import Holding, IdentifyReply, IdentifyRequest
from casam_core.protocol.outcomes import Outcome
from scenarios.engines.inprocess import run_inprocess
from server.federation.directory import check_alike
from tests.refused import refused


def test_other_code_is_named_before_the_scenario_is_read(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code may refuse the scenario itself, for a key it does not know."""

    def cannot_read(text: str) -> Scenario:
        raise AssertionError("read before the code was compared")

    for module in (client.client_app, client.release.outbox):
        monkeypatch.setattr(module, "code_fingerprint", lambda: "0123456789abcdef")
    monkeypatch.setattr(client.client_app.Scenario, "model_validate_json", cannot_read)
    with pytest.raises(
        RunError,
        match=r"code: the server runs [0-9a-f]{16}, a node 0123456789abcdef; stop the local SuperLink",
    ):
        run_inprocess(tiny_scenario, tmp_path / "run", None)


def test_a_scenario_is_told_once_and_again_to_a_node_that_forgot_it(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[IdentifyRequest] = []
    told = client.client_app.told

    def forgetful(request: IdentifyRequest, context: Context) -> str:
        asked.append(request)
        if len(asked) == 4:  # of three nodes the first, when it is asked for the second time
            del context.state.config_records[client.client_app.STATE]
        return told(request, context)

    monkeypatch.setattr(client.client_app, "told", forgetful)
    run_inprocess(tiny_scenario, tmp_path / "run", None)
    sent = [bool(request.scenario) for request in asked]
    assert sent == [True] * 3 + [False] * 3 + [True] + [False] * (len(sent) - 7)
    assert {request.digest for request in asked} == {tiny_scenario.digest()}


def test_a_node_does_not_go_on_with_another_scenario() -> None:
    node = Context(1, 2, {}, RecordDict(), {})
    request = IdentifyRequest.telling("{}", "run", code_fingerprint())
    with refused(Outcome.UNKNOWN_SCENARIO, match="this node got no identify message"):
        client.client_app.told(request.short(), node)
    node.state[client.client_app.STATE] = ConfigRecord({"scenario": compress_text("other"), "run": "run"})
    with refused(Outcome.UNKNOWN_SCENARIO, match="this node knows another scenario"):
        client.client_app.told(request.short(), node)


def test_the_nodes_of_a_process_share_one_text_of_the_scenario() -> None:
    """A thousand copies of what names a thousand institutions would be most of a worker's memory."""
    told = compress_text("{}")
    texts = ["".join([told[:3], told[3:]]) for _ in range(2)]
    assert texts[0] is not texts[1]
    nodes = [Context(1, number, {}, RecordDict(), {}) for number in range(2)]
    for node, text in zip(nodes, texts, strict=True):
        node.state[client.client_app.STATE] = ConfigRecord({"scenario": text, "run": "run"})
    assert client.client_app.scenario_text(nodes[0]) is client.client_app.scenario_text(nodes[1])


def test_a_guard_that_lets_nothing_out_ends_the_run_at_once(
    tmp_path: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.release.guard.allowed_in", lambda kind, sender: Allowed())
    with pytest.raises(RunError, match=r"cannot take part \(not-allowed, incident [0-9a-f]{8}\)"):
        run_inprocess(tiny_scenario, tmp_path / "run", None)


def reply(name: str, **changes: str | int) -> IdentifyReply:
    facts: dict[str, str | int] = {
        "code": code_fingerprint(),
        "backbone": "a" * 64,
        "preprocessing": "b" * 16,
    }
    facts |= {"compute": "cpu-float32-t1", **changes}
    held = {name: {"polyp": Holding(9, 2, 3)}}
    return IdentifyReply(institutions=held, policies={name: Policy()}, **facts)  # type: ignore[arg-type]


def test_institutions_with_other_weights_are_refused_with_both_values() -> None:
    replies = {1: reply("north"), 2: reply("south", backbone="c" * 64)}
    with pytest.raises(RunError, match=f"backbone: .*{'a' * 64}, {'c' * 64}"):
        check_alike(replies)


def test_institutions_that_prepare_images_otherwise_are_refused_with_both_values() -> None:
    replies = {1: reply("north"), 2: reply("south", preprocessing="c" * 16)}
    with pytest.raises(RunError, match=f"preprocessing: .*{'b' * 16}, {'c' * 16}"):
        check_alike(replies)
    check_alike({1: reply("north"), 2: reply("south")})


def test_an_image_library_that_resizes_otherwise_has_another_preprocessing(
    tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digits() -> str:
        load_backbone.cache_clear()
        return load_backbone(tiny_scenario.backbone, resolve_compute(tiny_scenario.compute)).preprocessing

    before, resize = digits(), Frame.resize_image
    assert digits() == before

    def slightly_other(self: Frame, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        resized = resize(self, image).copy()
        resized[0, 0, 0] ^= 1
        return resized

    monkeypatch.setattr(Frame, "resize_image", slightly_other)
    other = digits()
    load_backbone.cache_clear()
    assert other != before
