"""Members of a secure sum that send anything: the sum goes on or ends by name, and the run goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from casam_core.protocol.limits import AnswerError
from casam_core.protocol.outcomes import WORDS
from casam_core.protocol.payload import Payload
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    SETUP,
    SHARE_KEYS,
    STEPS_OF_A_SUM,
    UNMASK,
    SecureReply,
)
from casam_core.protocol.wire import packed, unpacked
from server.defence.admission import check_answer
from server.federation.secagg import Members, alike, attempt
from tests.client.secagg.test_lying_server import odd_protocol
from tests.runs import events
from tests.server.scripted import SECRET, Behaviour, Scripted, scripted

FOUR = dict.fromkeys(("a", "b", "c", "d"), ("polyp",))
Told = dict[str, Any]


def four(path: Path, **changes: Any) -> Scripted:
    """Four institutions that share everything in secure sums of two or more."""
    made = scripted(path, FOUR, stream=["polyp"], **changes)
    for site in made.sites.values():
        site.policy = SECRET
    return made


def at(step: str, change: Callable[[Told], Told]) -> Behaviour:
    """Changed settings in one exchange; the others stay honest."""

    def behaviour(honest: Payload) -> Payload:
        if step not in honest.arrays:
            return honest
        told = change(dict(unpacked(honest.arrays[step]["protocol"])))
        return replace(honest, arrays={step: {"protocol": packed(ConfigRecord(told))}})

    return behaviour


def without(key: str) -> Callable[[Told], Told]:
    return lambda told: {name: value for name, value in told.items() if name != key}


def with_(key: str, value: Any) -> Callable[[Told], Told]:
    return lambda told: {**told, key: value}


BROKEN: list[tuple[str, str, Callable[[Told], Told]]] = [
    ("no key", SETUP, without("pk1")),
    ("a number for a key", SETUP, with_("pk1", 7)),
    ("text for a key", SETUP, with_("pk2", b"-----BEGIN PUBLIC KEY-----")),
    ("another signature", SETUP, with_("signature", bytes(64))),
    ("no signature", SETUP, without("signature")),
    ("shares for strangers", SHARE_KEYS, with_("dsts", [1, 2, 99])),
    ("a share too few", SHARE_KEYS, lambda told: {"dsts": told["dsts"][1:], "ctxts": told["ctxts"][1:]}),
    ("no list", SHARE_KEYS, with_("ctxts", 3)),
    ("no masked arrays", COLLECT, with_("masked_params", [])),
    ("a pickle", COLLECT, lambda told: {"masked_params": [b"x80", *told["masked_params"][1:]]}),
    ("an array less", COLLECT, lambda told: {"masked_params": told["masked_params"][:-1]}),
    ("another signature of the list", AGREE, with_("signature", bytes(64))),
    ("no signature of the list", AGREE, without("signature")),
    ("shares of strangers", UNMASK, with_("nids", [1, 2, 99, 100])),
    ("no shares", UNMASK, with_("shares", [])),
    ("an unknown part", UNMASK, with_("extra", 1)),
]


@pytest.mark.parametrize(("step", "change"), [(s, c) for _, s, c in BROKEN], ids=[n for n, _, _ in BROKEN])
def test_a_member_with_a_broken_exchange_is_left_out_and_the_run_goes_on(
    tmp_path: Path, step: str, change: Callable[[Told], Told]
) -> None:
    run = four(tmp_path / "run", participation={"missing": "skip"})
    run.sites["b"].script["train"] = [at(step, change)] * 60
    holders = run.run()["holders"]["polyp"]
    assert holders == (["a", "b", "c", "d"] if step in (AGREE, UNMASK) else ["a", "c", "d"])
    assert {event["institution"] for event in events(run.path, "rejected")} == {"b"}


def test_a_wrong_share_of_a_secret_ends_the_sum_by_name(tmp_path: Path) -> None:
    def garbled(told: Told) -> Told:
        return {**told, "shares": [share[:-1] + bytes([share[-1] ^ 1]) for share in told["shares"]]}

    run = four(tmp_path / "run", participation={"missing": "skip"})
    run.sites["a"].script["train"] = [at(UNMASK, garbled)] * 60
    assert run.run()["holders"]["polyp"] == []
    (event,) = events(run.path, "sum-broken")
    assert "a share of a secret is wrong" in event["reason"]


def test_no_reply_to_an_exchange_ends_with_anything_but_a_word(tmp_path: Path) -> None:
    """2,500 changed replies: each is rejected, or the server reads it to the end."""
    run = four(tmp_path / "run")
    recorded: list[tuple[Payload, Payload]] = []
    answer = run.grid.answer

    def recording(site: Any, kind: str, request: Payload) -> Payload:
        reply = answer(site, kind, request)
        if kind == "train" and site.name == "b":
            recorded.append((request, reply))
        return reply

    run.grid.answer = recording  # type: ignore[method-assign]
    federation = run.federation()
    facts = {"stage": 1, "task": "polyp", "round": 1, "alone": False}
    questions = {name: Payload({"institution": name, **facts}) for name in run.sites}
    members = Members(federation, "train.router", questions)
    assert attempt(members) is not None
    assert len(recorded) == len(STEPS_OF_A_SUM)
    rng, rejected = random.Random(0), 0
    for number in range(2500):
        request, reply = recorded[number % len(recorded)]
        changed = odd(reply, rng)
        try:
            check_answer(run.scenario, federation.members["b"], "train", request, changed, 1000)
        except AnswerError:
            rejected += 1
            continue
        members.proven(alike({"b": SecureReply.of(changed)}))
    assert rejected > 1000


def odd(reply: Payload, rng: random.Random) -> Payload:
    """A reply with a change anywhere."""
    config, arrays = dict(reply.config), {name: dict(group) for name, group in reply.arrays.items()}
    place = rng.random()
    if place < 0.25:
        key = rng.choice([*config, "names", "patient"])
        config.pop(key, None)
        if rng.random() < 0.8:
            config[key] = rng.choice(["", "x", 1, -1, 2**60, 1e300, float("nan"), True, *sorted(WORDS)])
    elif place < 0.35:
        group = arrays.pop(rng.choice(list(arrays)))
        arrays[rng.choice([*STEPS_OF_A_SUM, "layer"])] = group
        if rng.random() < 0.5:
            arrays[rng.choice(STEPS_OF_A_SUM)] = {"x": np.ones(3)}
    else:
        for group in arrays.values():
            group["protocol"] = odd_protocol(group["protocol"], rng)
    return Payload(config, arrays, reply.metrics)
