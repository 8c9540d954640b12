"""What an institution does on its own, without server or Flower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casam_core.bank.bank import Bank, bank_digest
from casam_core.bank.entry_file import digest_of
from casam_core.config.public_files import file_of
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError
from casam_core.model.forms import AlignmentLayer, weights_of
from casam_core.model.validation import TESTED_INSTANCES, Validate, Validated, validator
from casam_core.protocol.limits import AnswerError
from casam_core.protocol.messages import AlignRequest, EvaluateRequest, allowed_in
from casam_core.protocol.outcomes import Outcome, RefusalError, outcome_of
from casam_core.protocol.payload import Job
from casam_core.routing.public_frames import FRAMES
from client.institution import Institution
from client.release import permission
from client.release.guard import sender_of
from client.site import hosted_sites
from tests.banks import files_of, random_frame, tiny_backbone, tiny_entry
from tests.conftest import tiny_table


def institution(name: str, folder: Path, **changes: Any) -> Institution:
    scenario = Scenario.model_validate(tiny_table(**changes))
    node = {"partition-id": 0, "num-partitions": 1}
    sites = hosted_sites(scenario, "run", node, {"out": str(folder)})
    return Institution(next(s for s in sites if s.institution == name), scenario, tiny_backbone())


def test_holders_of_a_task_start_their_routers_alike(tmp_path: Path) -> None:
    """Averaged weights of networks that began elsewhere would be the weights of nothing."""
    router = {"kind": "vae", "features": "attention", "epochs": 1, "learning_rate": 1e-12}
    summaries = [
        institution(name, tmp_path, router=router).router_statistics(Job(name, 2, "histology")).router
        for name in ("south", "west")
    ]
    for name in ("enc_fc1.weight", "dec_fc2.weight"):
        np.testing.assert_allclose(summaries[0][name], summaries[1][name], atol=1e-9)


def distance(one: Any, other: Any) -> float:
    """Euclidean distance over all arrays together."""
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one)))


def test_scaffold_tells_the_mean_gradient_and_the_guard_knows_it(tmp_path: Path) -> None:
    training = {"rounds": 2, "epochs": 1, "keep_best": False, "fallback_to_identity": False}
    site = institution("north", tmp_path, training=training | {"strategy": "scaffold"})
    other = institution("north", tmp_path, training=training)
    job = Job("north", 1, "polyp")
    reply, plain = permission.align(site, AlignRequest(job)), permission.align(other, AlignRequest(job))
    assert reply.control is not None
    assert reply.control.keys() == reply.layer.keys()
    assert max(np.abs(value).max() for value in reply.control.values()) > 0
    assert plain.control is None
    for name, value in plain.layer.items():
        np.testing.assert_array_equal(reply.layer[name], value, err_msg="the first round is FedAvg's")
    sender = sender_of(site, job)
    allowed_in("train.align", sender).check(reply.to_payload())
    with pytest.raises(AnswerError, match="control"):
        allowed_in("train.align", sender_of(other, job)).check(reply.to_payload())
    noisy = sender.policy.adapter.model_copy(update={"noise": "dp"})
    policy = sender.policy.model_copy(update={"adapter": noisy})
    with pytest.raises(AnswerError, match="control"):
        allowed_in("train.align", replace(sender, policy=policy)).check(reply.to_payload())
    later = AlignRequest(replace(job, round=2), reply.layer, control=reply.control)
    moved = site.align(later).layer, site.align(replace(later, control=None)).layer
    assert any(not np.array_equal(moved[0][name], moved[1][name]) for name in reply.layer)


def test_scaffold_is_no_part_of_a_secure_sum(tmp_path: Path) -> None:
    site = institution("north", tmp_path, training={"strategy": "scaffold"})
    with pytest.raises(RefusalError) as refusal:
        permission.align(site, AlignRequest(Job("north", 1, "polyp")), summed=True)
    assert refusal.value.outcome == Outcome.SUM_NOT_POSSIBLE


def test_fedprox_stays_nearer_to_the_start_of_the_round(tmp_path: Path) -> None:
    training = {"epochs": 8, "keep_best": False, "fallback_to_identity": False}
    site, near = (
        institution("north", tmp_path, training=training | more)
        for more in ({}, {"strategy": "fedprox", "proximal": 10.0})
    )
    start = weights_of(site.layer("polyp", None))
    far, close = (s.align(AlignRequest(Job("north", 1, "polyp"))).layer for s in (site, near))
    assert distance(close, start) < 0.8 * distance(far, start)


def test_an_embedding_that_is_gone_is_made_again(tmp_path: Path) -> None:
    site = institution("north", tmp_path)
    data, samples = site.encoded("polyp", "train")
    key, before = data.embedding(samples[0], site.backbone)
    (data.store.folder / key[:2] / f"{key}.npy").unlink()
    assert torch.equal(data.embedding(samples[0], site.backbone)[1], before)


NOISY = {"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 0.01}}


def test_a_bank_that_arrives_damaged_changes_no_copy(tmp_path: Path) -> None:
    """Neither one with entries nor one that is to begin anew; and an undamaged one is taken whole."""
    site, entries = institution("north", tmp_path), [tiny_entry("polyp"), tiny_entry("histology")]
    polyp, histology = (entry.to_bytes() for entry in entries)
    digests = {entry.task: digest_of(entry.to_bytes()) for entry in entries}
    other = replace(entries[1], threshold=0.5).to_bytes()

    def asked(known: int, *sent: bytes, tasks: Sequence[str]) -> Bank:
        bank = bank_digest({task: digests[task] for task in tasks})
        return site.updated_bank(EvaluateRequest(Job("north", 1), known, list(sent), bank))

    assert asked(0, polyp, tasks=["polyp"]).tasks == ("polyp",)
    before = files_of(tmp_path)
    for known, sent in ((1, [other]), (0, [polyp, other]), (1, [polyp, histology]), (2, [])):
        with pytest.raises(BankError, match="expected a bank of digest") as refused:
            asked(known, *sent, tasks=["polyp", "histology"])
        assert outcome_of(refused.value) == Outcome.BANK_MISMATCH
        assert files_of(tmp_path) == before
    assert asked(1, histology, tasks=["polyp", "histology"]).tasks == ("polyp", "histology")
    assert asked(1, tasks=["polyp"]).tasks == ("polyp",)
    assert asked(0, histology, polyp, tasks=["histology", "polyp"]).tasks == ("histology", "polyp")


def epochs_that_were_measured(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[float]:
    """The IoUs of epochs that chose a layer of the first task."""
    training = {"epochs": 3, "batch_images": 4, "fallback_to_identity": False} | changes.pop("training", {})
    site, measured = institution("north", folder, training=training, **changes), []
    chosen = validator

    def noted(*asked: Any) -> Validate | None:
        validate = chosen(*asked)
        if asked[2].instances == TESTED_INSTANCES:  # of the fallback and the correction, after the last epoch
            return validate

        def measure(layer: AlignmentLayer) -> Validated:
            assert validate is not None
            found = validate(layer)
            measured.append(found.iou)
            return found

        return measure

    monkeypatch.setattr("client.institution.validator", noted)
    request = AlignRequest(Job("polyp", 1, "polyp"), layer=None, tasks=("polyp",))
    learned = site.align(request).layer
    if measured:
        layer = site.layer("polyp", learned)
        assert max(measured) == chosen_iou(site, request, layer)
    return measured


def chosen_iou(site: Institution, request: AlignRequest, layer: AlignmentLayer) -> float:
    validate = site.validator(request, layer, site.scenario.training)
    assert validate is not None
    return validate(layer).iou


def test_the_epoch_that_validation_images_like_best_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(epochs_that_were_measured(tmp_path, monkeypatch)) == 4  # three epochs, and this test


def test_no_epoch_is_chosen_where_it_is_not_wanted_or_would_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny_table()["institutions"]
    noisy = [site | ({"policy": NOISY} if site["name"] == "north" else {}) for site in table]
    assert epochs_that_were_measured(tmp_path / "noisy", monkeypatch, institutions=noisy) == []
    off = epochs_that_were_measured(tmp_path / "off", monkeypatch, training={"keep_best": False})
    assert off == []


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({}, True),
        (NOISY, False),
        ({"metrics": "never"}, False),
        ({"adapter": {"aggregation": "secagg"}}, False),
        ({"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}, False),
    ],
)
def test_the_correction_is_told_only_where_exact_figures_may_leave(
    tmp_path: Path, policy: dict[str, Any], told: bool
) -> None:
    table = tiny_table()["institutions"]
    sites = [site | ({"policy": policy} if site["name"] == "north" else {}) for site in table]
    site = institution("north", tmp_path, institutions=sites, training={"epochs": 1, "keep_best": True})
    reply = site.align(AlignRequest(Job("polyp", 1, "polyp")))
    assert (reply.correction is not None) == told


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({}, True),
        ({"metrics": "never"}, True),
        ({"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}, True),
        (NOISY, False),
        ({"adapter": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}, False),
    ],
)
def test_who_hides_validation_images_behind_noise_does_not_say_if_its_layer_beats_frozen_sam(
    tmp_path: Path, policy: dict[str, Any], told: bool
) -> None:
    """The budget of metrics covers the validation images; the comparison would be an exact bit about them."""
    table = tiny_table()["institutions"]
    sites = [site | ({"policy": policy} if site["name"] == "north" else {}) for site in table]
    training = {"epochs": 1, "batch_images": 4, "fallback_to_identity": True}
    privacy = {"steps": 2, "sampling_rate": 1.0}
    site = institution("north", tmp_path, institutions=sites, training=training, privacy=privacy)
    job = Job("north", 1, "polyp")
    reply = permission.align(site, AlignRequest(job))
    assert (reply.improved is not None) == told
    spoken = replace(reply, improved=True).to_payload()
    if told:
        allowed_in("train.align", sender_of(site, job)).check(spoken)
    else:
        with pytest.raises(AnswerError, match="'improved'"):
            allowed_in("train.align", sender_of(site, job)).check(spoken)


# --- The public frame of the router ------------------------------------------------------------------


def framed(folder: Path, width: int) -> tuple[Institution, bytes]:
    """An institution of a scenario with a frame that casam does not ship, and the frame's file."""
    digest = random_frame(width)
    data = FRAMES.data(digest, FRAMES.here)
    file_of(FRAMES.here, digest).unlink()
    return institution("north", folder, router={"frame": digest}), data


def test_a_frame_that_came_with_the_scenario_is_kept_and_used(tmp_path: Path) -> None:
    site, data = framed(tmp_path, width=64)
    site.learn_public([data])
    assert site.fit_router(Job("north", 1, "polyp")).router["mean_K"].shape == (32,)
    site.learn_public([])  # a later identify message does not repeat it


def test_another_frame_than_the_approved_one_is_refused_by_name(tmp_path: Path) -> None:
    site, data = framed(tmp_path, width=64)
    with pytest.raises(RefusalError, match="expected a public file of the scenario") as refusal:
        site.learn_public([data.replace(b'"about": {}', b'"about": {"a": 1}')])
    assert refusal.value.outcome == Outcome.OTHER_PUBLIC_FILE
    kept = site.site.folder_of(FRAMES)
    assert not kept.exists() or not list(kept.iterdir())


def test_a_frame_for_other_features_is_refused_before_any_image_is_placed(tmp_path: Path) -> None:
    site, data = framed(tmp_path, width=40)
    with pytest.raises(RefusalError, match="does not fit features of 64 values") as refusal:
        site.learn_public([data])
    assert refusal.value.outcome == Outcome.OTHER_PUBLIC_FILE


def test_a_missing_frame_is_asked_for(tmp_path: Path) -> None:
    """The server answers `unknown-scenario` with the whole scenario and its frame."""
    site, _ = framed(tmp_path, width=64)
    with pytest.raises(RefusalError, match="there is no frame") as refusal:
        site.learn_public([])
    assert refusal.value.outcome == Outcome.UNKNOWN_SCENARIO


def test_a_shipped_frame_needs_no_file(tmp_path: Path) -> None:
    institution("north", tmp_path).learn_public([])
