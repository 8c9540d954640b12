"""One question to several institutions: whose replies count, who is asked in a secure sum, and who hides
among whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from casam_core.config.policy import Policy
from casam_core.protocol.messages import AlignReply, RouterReply, RouterRequest
from casam_core.protocol.payload import Job
from casam_core.protocol.schema import Message
from server.federation.federation import Federation
from server.federation.gathering import Gathered, gather
from server.learning import align_requests
from tests.server.scripted import SECRET, Scripted, dies, refuses, says, scripted

NAMES = ("a", "b", "c")
SECRET_LAYERS = Policy.model_validate({"adapter": {"aggregation": "secagg"}, "minimum_cohort": 2})


def of_polyp(path: Path, policies: Mapping[str, Policy] | None = None, **changes: Any) -> Scripted:
    """Three holders of one task. Nobody is asked twice."""
    changes = {"stream": ["polyp"], "deadlines": {"retries": 0}} | changes
    run = scripted(path, dict.fromkeys(NAMES, ("polyp",)), **changes)
    for name, policy in (policies or {}).items():
        run.sites[name].policy = policy
    return run


def layers(federation: Federation) -> Gathered[AlignReply]:
    """The layers of all three."""
    trainers = dict.fromkeys(NAMES, ("polyp",))
    asked = align_requests(federation.scenario, Job("", 1, "polyp", 1), trainers, None, None, again=False)
    return gather(federation, asked, AlignReply)


def routers(federation: Federation) -> Gathered[RouterReply]:
    """The routers' statistics of all three."""
    asked: dict[str, Message] = {name: RouterRequest(Job(name, 1, "polyp"), alone=False) for name in NAMES}
    return gather(federation, asked, RouterReply)


def hidden(federation: Federation) -> dict[str, dict[str, dict[str, int]]]:
    """What the summary says of anonymity."""
    found: dict[str, dict[str, dict[str, int]]] = federation.counters.as_dict()["anonymity"]
    return found


def test_who_gives_no_result_is_left_out_and_the_others_keep_their_order(tmp_path: Path) -> None:
    run = of_polyp(tmp_path / "run")
    run.sites["b"].script["train.align"] = [refuses("adapter-not-shared")]
    federation = run.federation()
    found = layers(federation)
    assert [(part.names, part.summed) for part in found.parts] == [(("a",), False), (("c",), False)]
    assert (found.names, found.summed, found.refused) == (("a", "c"), (), False)
    assert [reply.images for reply in found.replies] == [12, 12]
    assert hidden(federation).keys() == {"a", "c"}


@pytest.mark.parametrize(
    ("last", "refused"),
    [(refuses("rounds-spent"), True), (says(images=-1), True), (refuses("failed"), False), (dies, False)],
    ids=["refuses", "is rejected", "fails", "dies"],
)
def test_asking_again_is_in_vain_only_where_nobody_just_failed(
    tmp_path: Path, last: Any, refused: bool
) -> None:
    run = of_polyp(tmp_path / "run")
    for name, behaviour in zip(NAMES, (*[refuses("adapter-not-shared")] * 2, last), strict=True):
        run.sites[name].script["train.align"] = [behaviour]
    found = layers(run.federation())
    assert (found.parts, found.refused) == ((), refused)


def test_a_sum_is_one_reply_behind_the_open_ones(tmp_path: Path) -> None:
    run = of_polyp(tmp_path / "run", {"a": SECRET, "c": SECRET})
    federation = run.federation()
    found = layers(federation)
    assert [(part.names, part.summed) for part in found.parts] == [(("b",), False), (("a", "c"), True)]
    assert (found.summed, [reply.images for reply in found.replies]) == (("a", "c"), [12, 24])
    assert {name: set(run.sites[name].kinds()) for name in NAMES} == {
        "a": {"train"},
        "b": {"train.align"},
        "c": {"train"},
    }
    # A co-holder that is in the sum knows its own share of it, so it faces one other member.
    assert hidden(federation)["a"] == {"adapter": {"server": 2, "co_holder": 1}}
    assert hidden(federation)["b"] == {"adapter": {"server": 1, "co_holder": 2}}


def test_a_sum_of_one_would_hide_nothing_so_its_policy_is_asked_openly(tmp_path: Path) -> None:
    run = of_polyp(tmp_path / "run", {"b": SECRET})
    run.sites["b"].script["train.align"] = [refuses("cohort-too-small")]
    assert layers(run.federation()).names == ("a", "c")
    assert run.sites["b"].kinds() == ["train.align"]


def test_each_learned_part_follows_its_own_line_of_the_policy(tmp_path: Path) -> None:
    run = of_polyp(tmp_path / "run", dict.fromkeys(NAMES, SECRET_LAYERS))
    federation = run.federation()
    summed = layers(federation)
    assert (summed.summed, summed.refused) == (NAMES, False)
    found = routers(federation)
    assert (found.names, found.summed) == (NAMES, ())
    assert hidden(federation)["a"] == {
        "adapter": {"server": 3, "co_holder": 2},
        "router": {"server": 1, "co_holder": 2},
    }


def test_a_broken_sum_leaves_the_open_replies_and_may_be_asked_again(tmp_path: Path) -> None:
    run = of_polyp(tmp_path / "run", {"a": SECRET, "c": SECRET})
    run.sites["a"].script["train"] = [dies]
    assert (found := layers(run.federation())).names == ("b",)
    assert not found.refused

    alone = of_polyp(tmp_path / "alone", {"a": SECRET, "c": SECRET})
    alone.sites["a"].script["train"] = [dies]
    alone.sites["b"].script["train.align"] = [refuses("adapter-not-shared")]
    assert (found := layers(alone.federation())).parts == ()
    assert not found.refused


def test_of_what_krum_takes_the_sender_is_known_but_its_router_hides_in_a_mean(tmp_path: Path) -> None:
    run = of_polyp(
        tmp_path / "run", training={"epochs": 1, "fallback_to_identity": False, "strategy": "krum"}
    )
    federation = run.federation()
    layers(federation)
    routers(federation)
    expected = {"adapter": {"server": 1, "co_holder": 1}, "router": {"server": 1, "co_holder": 2}}
    assert hidden(federation) == dict.fromkeys(NAMES, expected)
