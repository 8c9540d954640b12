"""The numbers of a secure sum, and what the guard lets out of its exchanges."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow.secure_aggregation import secaggplus_workflow
from scipy.stats import kstest

from casam_core.config.scenario import Scenario
from casam_core.privacy.keystream import masks
from casam_core.protocol.messages import AlignRequest
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    HEAVIEST,
    MODULUS,
    MOST_MEMBERS,
    RANGE,
    RESOLUTION,
    SETUP,
    SHARE_KEYS,
    STEPS,
    STEPS_OF_A_SUM,
    UNMASK,
    SecureRequest,
    is_weight,
    quantize,
    released_in,
    share_of,
    shares_needed,
    total_of,
    weight_for,
)
from casam_core.protocol.wire import from_records, packed, unpacked
from client.institution import Institution
from client.release.guard import NotAllowedError, check
from client.release.outbox import described
from client.release.permission import check_align
from client.secagg import member as secure_sum
from client.site import hosted_sites
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table
from tests.refused import refused

JOB = Job("a", 1, "polyp")
POLICY = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}


def scenario() -> Scenario:
    sites = [
        {"name": name, "data": {"polyp": phantom("polyp", 8)}, "policy": POLICY} for name in ("a", "b", "c")
    ]
    return Scenario.model_validate(tiny_table(stream=["polyp"], institutions=sites))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Institution, dict[str, Payload]]:
    """Institution a, and what it answered in each exchange of a real sum of layers."""
    folder, answers = tmp_path_factory.mktemp("sums"), {}
    deliver = InProcessGrid._deliver

    def recording(self: InProcessGrid, message: Any) -> str:
        message_id = deliver(self, message)
        asked, answered = from_records(message.content), from_records(self._replies[message_id].content)
        if asked.config.get("sum") == "train.align" and asked.config["institution"] == "a":
            config = {key: value for key, value in answered.config.items() if key != "audit"}
            answers[SecureRequest.of(asked).step] = replace(answered, config=config)
        return message_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(folder / "home"))
        patch.setattr(InProcessGrid, "_deliver", recording)
        run_inprocess(scenario(), folder / "run", None)
        node = {"partition-id": 0, "num-partitions": 3}
        (site,) = hosted_sites(scenario(), "again", node, {"out": str(folder)})
        institution = Institution(site, scenario(), tiny_backbone())
        institution.holdings()
    return institution, answers


# --- Numbers -------------------------------------------------------------------------------------------


def test_masks_keep_the_whole_seed() -> None:
    one, other = b"abcdefgh" * 4, b"efghabcd" * 4  # Flower folds both to the same 32 bits
    np.testing.assert_array_equal(*(pseudo_rand_gen(s, MODULUS, [(50,)])[0] for s in (one, other)))
    first, again, second = (masks(s, MODULUS, [(2000,), (3, 4)]) for s in (one, one, other))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] == second[0]).mean() < 0.01
    assert first[1].shape == (3, 4)
    assert kstest(first[0] / MODULUS, "uniform").pvalue > 1e-3


def test_both_sides_use_them() -> None:
    assert secure_sum.flower.pseudo_rand_gen is masks
    assert secaggplus_workflow.pseudo_rand_gen is masks
    assert secure_sum.flower.quantize is quantize


def test_a_layer_is_averaged_and_statistics_are_added() -> None:
    layer = Payload({"improved": False}, {"layer": {"w": np.array([2.0, 4.0], np.float32)}})
    named = share_of("train.align", layer, 10)
    assert {name: list(value) for name, value in named.items()} == {"improved": [0.0], "layer/w": [2.0, 4.0]}
    back = total_of("train.align", named, 10)
    assert back.config == {"improved": False}
    assert back.metrics == {"align": {"num-examples": 10}}
    # 30 counted images at one holder of 10 images, 8 at another of 6: 38 of 16 images, per image 2.375
    counts = total_of("train.calibrate", {"histogram/counts": np.array([2.375])}, 16)
    assert counts.arrays["histogram"]["counts"].tolist() == [38]


def test_who_learns_no_finder_is_in_no_sum_of_finders(tmp_path: Path) -> None:
    """Its arrays leave as they came. The server knows them, so the others would hide among fewer."""
    policy = POLICY | {"finder": "never"}
    sites = [{"name": name, "data": {"polyp": phantom("polyp", 8)}, "policy": policy} for name in "abc"]
    for finder in (False, True):
        table = tiny_table(stream=["polyp"], institutions=sites, alignment={"finder": finder})
        asked = Scenario.model_validate(table)
        run, node = f"run-{finder}", {"partition-id": 0, "num-partitions": 3}
        (site,) = hosted_sites(asked, run, node, {"out": str(tmp_path)})
        institution, request = Institution(site, asked, tiny_backbone()), AlignRequest(JOB)
        if not finder:
            check_align(institution, request, summed=True)
            continue
        with refused(Outcome.SUM_NOT_POSSIBLE, match="other finders would hide among fewer"):
            check_align(institution, request, summed=True)


IMAGES = (16, 13, 9)


@pytest.mark.parametrize("improved", list(itertools.product([False, True], repeat=3)))
def test_the_sum_says_how_many_layers_help_and_not_whose(improved: tuple[bool, ...]) -> None:
    """The numbers of images are public, so a sum that is weighted by them would name the members."""
    total = sum(
        images * share_of("train.align", Payload({"improved": bit}), images)["improved"][0]
        for bit, images in zip(improved, IMAGES, strict=True)
    )
    assert total == pytest.approx(sum(improved))
    means = {"improved": np.array([total / sum(IMAGES)])}
    assert total_of("train.align", means, sum(IMAGES)).config == {"improved": any(improved)}


def test_every_member_rounds_what_it_adds_in_the_same_way() -> None:
    """A count of 3 at a holder of 16, 13 or 9 images: the steps that it adds to the sum, by max_weight.

    With 2^39.58..., only the one with 13 would have added anything, and the sum would have been its own.
    """

    def added(images: int, weight: float) -> int:
        ratio = round(images / weight * STEPS) / STEPS  # as Flower does
        (steps,) = quantize([np.array([3 / images * ratio])], RANGE, STEPS)[0]
        return int(steps) - STEPS // 2

    assert [added(images, 2.0**39.58317751481247) for images in IMAGES] == [0, 1, 0]
    assert [weight_for(images) for images in (1, 9, 13, 16, 17)] == [1, 16, 16, 16, 32]
    for weight in (weight_for(max(IMAGES)), 2.0**20, HEAVIEST):
        assert is_weight(weight)
        assert {added(images, weight) for images in IMAGES} == {3 * 2**37 / weight}


def test_an_error_is_far_below_the_variance_of_a_feature() -> None:
    assert RESOLUTION < 1e-10
    assert MOST_MEMBERS * STEPS < MODULUS


def test_numbers_are_rounded_to_the_nearest_step_and_never_clipped() -> None:
    # 8 steps over [-1, 1]: -1, -0.75, ..., 1
    assert [a.tolist() for a in quantize([np.array([-1.0, -0.7, 0.0, 1.0])], 1.0, 8)] == [[0, 1, 4, 8]]
    for value in (1.01, -2.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="expected values within 1"):
            quantize([np.array([value])], 1.0, 8)


@pytest.mark.parametrize(
    ("members", "minimum", "needed"), [(3, 3, 3), (4, 3, 3), (5, 3, 4), (10, 3, 6), (10, 5, 7), (5, 2, 3)]
)
def test_as_many_must_stay_as_the_most_careful_member_asks_for(
    members: int, minimum: int, needed: int
) -> None:
    assert shares_needed(members, minimum) == needed


# --- The guard -----------------------------------------------------------------------------------------

OTHER_CURVE = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)

Smuggle = Callable[[Payload], Payload]
PATIENT = "Doe, Jane, born 1950-01-01"


def test_every_exchange_of_a_real_sum_passes(recorded: tuple[Institution, dict[str, Payload]]) -> None:
    institution, answers = recorded
    assert set(answers) == set(STEPS_OF_A_SUM)
    for answer in answers.values():
        check("train", answer, institution, JOB)


def protocol(step: str, **changes: Any) -> Smuggle:
    """Change settings of one exchange."""

    def changed(payload: Payload) -> Payload:
        settings = dict(unpacked(payload.arrays[step]["protocol"]))
        data = packed(ConfigRecord({**settings, **changes}))
        return replace(payload, arrays={step: {"protocol": data}})

    return changed


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def masked(change: Callable[[list[bytes]], list[bytes]]) -> Smuggle:
    """Change the masked arrays."""

    def changed(payload: Payload) -> Payload:
        settings = unpacked(payload.arrays[COLLECT]["protocol"])
        parts = change(list(settings["masked_params"]))  # type: ignore[arg-type]
        return protocol(COLLECT, masked_params=parts)(payload)

    return changed


SMUGGLE: list[tuple[str, str, Smuggle]] = [
    ("a name in a setting", SETUP, lambda p: replace(p, config={**p.config, "patient": PATIENT})),
    ("a name for a place in the log", SETUP, lambda p: replace(p, config={**p.config, "audit": PATIENT})),
    ("a group without arrays", SETUP, lambda p: replace(p, arrays={**p.arrays, PATIENT: {}})),
    ("numbers in the open", SETUP, lambda p: replace(p, metrics={"loss": {"mean": 0.5}})),
    ("a layer beside masks", COLLECT, lambda p: replace(p, arrays={**p.arrays, "layer": {"w": np.ones(3)}})),
    ("a second exchange", SETUP, lambda p: replace(p, arrays={**p.arrays, **{UNMASK: p.arrays[SETUP]}})),
    ("a second array", SETUP, lambda p: replace(p, arrays={SETUP: {**p.arrays[SETUP], "x": np.ones(3)}})),
    ("another kind", SETUP, lambda p: replace(p, config={**p.config, "sum": "evaluate.stage"})),
    ("names where no arrays are", SETUP, lambda p: replace(p, config={**p.config, "names": PATIENT})),
    ("text for a key", SETUP, protocol(SETUP, pk1=PATIENT.encode())),
    ("text for a signature", SETUP, protocol(SETUP, signature=PATIENT.encode())),
    ("text behind a signature", AGREE, lambda p: protocol(AGREE, signature=bytes(64) + PATIENT.encode())(p)),
    ("keys of another curve", SETUP, protocol(SETUP, pk1=OTHER_CURVE)),
    ("text behind a key", SETUP, lambda p: protocol(SETUP, pk1=key_of(p) + PATIENT.encode() * 20)(p)),
    ("a third key", SETUP, protocol(SETUP, pk3=b"-----BEGIN PUBLIC KEY-----")),
    ("long shares", SHARE_KEYS, protocol(SHARE_KEYS, dsts=[2, 3], ctxts=[b"x" * 5000, b"y"])),
    ("many shares", SHARE_KEYS, protocol(SHARE_KEYS, dsts=list(range(1, 40)), ctxts=[b"x"] * 39)),
    ("two shares for one", SHARE_KEYS, protocol(SHARE_KEYS, dsts=[2, 2], ctxts=[b"x", b"y"])),
    ("a pixel for a member", SHARE_KEYS, protocol(SHARE_KEYS, dsts=[123456789], ctxts=[b"x"])),
    ("shares without members", UNMASK, protocol(UNMASK, nids=[], shares=[b"x"])),
    ("a layer without masks", COLLECT, masked(lambda parts: [array(np.ones(3)), *parts[1:]])),
    ("another shape", COLLECT, masked(lambda parts: [*parts[:-1], array(np.zeros(999, np.int64))])),
    ("beyond the modulus", COLLECT, masked(lambda parts: [array(np.array([2**50])), *parts[1:]])),
    ("below zero", COLLECT, masked(lambda parts: [array(np.array([-1])), *parts[1:]])),
    ("one array more", COLLECT, masked(lambda parts: [*parts, parts[0]])),
    ("bytes behind an array", COLLECT, masked(lambda parts: [parts[0] + PATIENT.encode() * 30, *parts[1:]])),
    ("a pickle", COLLECT, masked(lambda parts: [b"\x80\x04N.", *parts[1:]])),
    ("other names", COLLECT, lambda p: replace(p, config={**p.config, "names": PATIENT})),
    ("no exchange at all", SETUP, lambda p: replace(p, arrays={SETUP: {"protocol": np.ones(9, np.uint8)}})),
]  # fmt: skip


def key_of(payload: Payload) -> bytes:
    key = unpacked(payload.arrays[SETUP]["protocol"])["pk1"]
    assert isinstance(key, bytes)
    return key


@pytest.mark.parametrize(("step", "smuggle"), [(s, f) for _, s, f in SMUGGLE], ids=[n for n, _, _ in SMUGGLE])
def test_nothing_else_leaves_in_an_exchange(
    step: str, smuggle: Smuggle, recorded: tuple[Institution, dict[str, Payload]]
) -> None:
    institution, answers = recorded
    with pytest.raises(NotAllowedError) as caught:
        check("train", smuggle(answers[step]), institution, JOB)
    assert PATIENT not in str(caught.value)


def test_the_audit_log_counts_a_share_as_a_round(recorded: tuple[Institution, dict[str, Payload]]) -> None:
    _, answers = recorded
    counted = {step: released_in(described(answer)) for step, answer in answers.items()}
    assert counted == {SETUP: False, SHARE_KEYS: False, COLLECT: True, AGREE: False, UNMASK: False}
