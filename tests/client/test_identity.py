"""A reply to identify as a carrier of an image: seven ways, each with its decoder, and none passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.protocol.messages import IdentifyReply
from casam_core.protocol.payload import Payload, in_order
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records
from client.identity import identity_of
from client.institution import Institution
from client.release.guard import NotAllowedError, check_identity
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import tiny_table

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
BYTES = IMAGE.tobytes()


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> list[Institution]:
    scenario = Scenario.model_validate(tiny_table())
    folder = tmp_path_factory.mktemp("identity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        sites = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 3}, {"out": str(folder)})
    return [Institution(site, scenario, tiny_backbone()) for site in sites]


@pytest.fixture(scope="module")
def honest(hosted: list[Institution]) -> Payload:
    return identity_of(hosted).to_payload()


def table(payload: Payload, key: str) -> Any:
    return json.loads(str(payload.config[key]))


def with_table(payload: Payload, **changes: Any) -> Payload:
    """Tables in their one spelling."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in changes.items()}
    return in_order(replace(payload, config={**payload.config, **texts}))


def pieces(size: int) -> Iterator[bytes]:
    return (BYTES[at : at + size] for at in range(0, len(BYTES), size))


COUNTS = {"train": 6, "val": 2, "test": 4}


def in_task_names(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(20):
        held = table(honest, "institutions")
        held["north"][f"t{part.hex()}"] = COUNTS
        yield (
            with_table(honest, institutions=held),
            lambda p: bytes.fromhex(
                next(task for task in table(p, "institutions")["north"] if task != "polyp")[1:]
            ),
        )


def in_institution_names(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(20):
        name = f"t{part.hex()}"
        held, policies = table(honest, "institutions"), table(honest, "policies")
        held[name], policies[name] = {}, policies["north"]
        yield (
            with_table(honest, institutions=held, policies=policies),
            lambda p: bytes.fromhex(next(name for name in table(p, "institutions") if name != "north")[1:]),
        )


def in_the_policys_numbers(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(1024):
        policies = table(honest, "policies")
        policies["north"]["max_rounds"] = int.from_bytes(b"\1" + part)
        yield (
            with_table(honest, policies=policies),
            lambda p: (n := table(p, "policies")["north"]["max_rounds"]).to_bytes((n.bit_length() + 7) // 8)[
                1:
            ],
        )


def in_the_arithmetic(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(1):
        compute = f"cpu-float32-t{part[0]}"
        yield (
            replace(honest, config={**honest.config, "compute": compute}),
            lambda p: bytes([int(str(p.config["compute"]).rpartition("t")[2])]),
        )


def in_forecasts(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(3):
        said = {"north": {"polyp": {"affordable": int.from_bytes(part), "rounds": 1, "router_share": 0.5}}}
        yield (
            with_table(honest, forecasts=said),
            lambda p: table(p, "forecasts")["north"]["polyp"]["affordable"].to_bytes(3),
        )


def in_the_routers_share(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(6):
        share = int.from_bytes(part) / 256**6
        said = {"north": {"polyp": {"affordable": 1, "rounds": 1, "router_share": share}}}
        yield (
            with_table(honest, forecasts=said),
            lambda p: int(table(p, "forecasts")["north"]["polyp"]["router_share"] * 256**6).to_bytes(6),
        )


def in_fingerprints(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(32):
        yield (
            replace(honest, config={**honest.config, "backbone": part.hex()}),
            lambda p: bytes.fromhex(str(p.config["backbone"])),
        )


def in_counts(honest: Payload) -> Iterator[tuple[Payload, Callable[[Payload], bytes]]]:
    for part in pieces(3):
        held = table(honest, "institutions")
        held["north"]["polyp"] = {**COUNTS, "train": int.from_bytes(part)}
        yield (
            with_table(honest, institutions=held),
            lambda p: table(p, "institutions")["north"]["polyp"]["train"].to_bytes(3),
        )


WAYS = [
    in_task_names,
    in_institution_names,
    in_the_policys_numbers,
    in_the_arithmetic,
    in_forecasts,
    in_the_routers_share,
    in_fingerprints,
    in_counts,
]


@pytest.mark.parametrize("way", WAYS)
def test_no_field_of_identify_carries_an_image(
    way: Callable[[Payload], Iterator[tuple[Payload, Callable[[Payload], bytes]]]],
    honest: Payload,
    hosted: list[Institution],
) -> None:
    replies = list(way(honest))
    arrived = b"".join(read(from_records(deserialise(serialise(to_records(p))))) for p, read in replies)
    assert arrived == BYTES, "the way does carry the image, if nobody stops it"
    odd = [payload for payload, _ in replies if payload.config != honest.config]
    for payload in odd[:: max(1, len(odd) // 20)]:
        with pytest.raises(NotAllowedError, match="is not what this site says"):
            check_identity("query.identify", payload, hosted)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("simulated", False), ("simulated", 1), ("schema", 99), ("schema", True), ("preprocessing", "0" * 16)],
)
def test_no_single_value_is_free(
    setting: str, value: object, honest: Payload, hosted: list[Institution]
) -> None:
    odd = replace(honest, config={**honest.config, setting: value})  # type: ignore[dict-item]
    with pytest.raises(NotAllowedError):
        check_identity("query.identify", odd, hosted)


def test_the_order_of_content_says_nothing_on_the_wire(honest: Payload) -> None:
    """720 orders of six settings would be nine bits in every reply."""
    settings = dict(list(honest.config.items())[:6])
    sent = {serialise(to_records(Payload(dict(order)))) for order in permutations(settings.items())}
    assert len(sent) == 1
    arrays = {"b": np.zeros(1), "a": np.ones(1)}
    turned = dict(reversed(arrays.items()))
    one, other = Payload({}, {"layer": arrays, "x": {}}), Payload({}, {"x": {}, "layer": turned})
    assert serialise(to_records(one)) == serialise(to_records(other))


def test_the_sites_own_reply_passes_and_names_itself_only(
    honest: Payload, hosted: list[Institution], tmp_path: Path
) -> None:
    check_identity("query.identify", honest, hosted)
    with pytest.raises(NotAllowedError):
        check_identity("query.identify", honest, [])
    with pytest.raises(NotAllowedError):
        check_identity("train.align", honest, hosted)


def test_the_part_of_one_institution_names_no_other() -> None:
    reply = IdentifyReply("0" * 16, "", "", {"a": {}, "b": {}}, {"a": Policy(), "b": Policy()})
    assert reply.of_one("a") == IdentifyReply("0" * 16, "", "", {"a": {}}, {"a": Policy()})
