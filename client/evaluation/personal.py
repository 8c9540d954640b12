"""Personal entries: what an institution makes of a shared entry for itself (`alignment.personal`).

It trains on from the shared layer, on its own training images and without noise. Between the shared weights
and its own ones it takes those that are best on its validation images, and keeps the shared ones unless
others are clearly better. It also takes the router of its own images alone where this one recognises more of
its validation images. A personal entry never leaves. Where the policy allows it, one figure does: the IoU of
the institution's test images with personal entries.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import route_among
from casam_core.files import remove_folder
from casam_core.methods import alignment_of
from casam_core.model.forms import set_weights, weights_of
from casam_core.model.validation import TESTED_INSTANCES, clearly_above_zero
from casam_core.protocol.messages import CORRECTION, AlignRequest, EvaluateReply, tells_personal
from casam_core.protocol.payload import Job
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers.public_frame import frame_named
from client.evaluation.own_entries import PERSONAL, SITE_BANK, KnownEntries, known_entries, with_own_router
from client.institution import Institution
from client.node.incidents import keep

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the shared weights to the own ones that are tried."""

MIN_IMAGES = 2
"""Fewest validation images that choose: of a single one, no scatter of the gain is known."""


def personal_entries(institution: Institution, received: Bank) -> list[Bank]:
    """The personal entries for the entries of the received bank that this institution contributed to.

    Each is made once, in a bank of its own that has the name of the shared entry's digest. Where nothing was
    clearly better, this bank holds the shared entry. Raises RunError if the training diverges.
    """
    found: list[Bank] = []
    for head in received.heads():
        mine = institution.name in head.provenance.holders
        wanted = mine and alignment_of(institution.scenario, head.task).personal
        if not wanted or institution.task(head.task).holding.val < MIN_IMAGES:
            continue
        folder = institution.site.private / PERSONAL / received.digest_of(head.task)
        bank = Bank.open(folder, create=True)
        if not len(bank):
            shared = known_entries(institution, received)[head.task]
            bank.add(with_better_router(institution, personal_entry(institution, shared)))
        found.append(bank)
    return found


def personal_entry(institution: Institution, shared: Entry) -> Entry:
    """The entry with the weights that the validation images choose; the shared one if they choose none."""
    scenario, about = institution.scenario, shared.provenance
    frozen = about.form != alignment_of(scenario, shared.task).form  # the fallback to the identity
    layer = institution.layer(shared.task, None if frozen else shared.layer)
    start = weights_of(layer)
    # One more round, with draws of its own.
    job = Job(institution.name, about.stage, shared.task, scenario.training.rounds + 1)
    request = AlignRequest(job, layer=None if frozen else start)
    tested = scenario.training.model_copy(update={"instances": TESTED_INSTANCES})
    test = institution.validator(request, layer, tested)
    if test is None:
        return shared
    before, own, tried = test(layer).iou_N, institution.align(request).layer, []
    for weight in WEIGHTS:
        mixed = between(start, own, weight)
        set_weights(layer, mixed)
        tried.append((test(layer), mixed))
    best, mixed = max(tried, key=lambda pair: pair[0].iou)
    if not clearly_above_zero(best.iou_N - before):
        return shared
    return make_entry(
        scenario,
        about.backbone,
        task=shared.task,
        stage=about.stage,
        layer=mixed,
        improved=True,
        holders=about.holders,
        images=about.images,
        router=shared.router,
        threshold=shared.threshold,
        correction=CORRECTION.fitting(best.correction),
    )


def with_better_router(institution: Institution, entry: Entry) -> Entry:
    """The entry with the router of this institution's images alone, if it recognises more validation images.

    Several institutions have one state together; images of another scanner may lie beyond its threshold.
    """
    if len(entry.provenance.holders) == 1 or entry.threshold is None:
        return entry
    own = with_own_router(institution, entry)
    data, samples = institution.encoded(entry.task, "val")
    f_NF = data.features(samples, institution.backbone, institution.scenario.router.features)

    def knows(some: Entry, f_F: Tensor) -> bool:
        score = institution.router.score(f_F, some.router)
        return route_among([some.head], lambda _: score).task is not None

    gained = sum(knows(own, f_F) - knows(entry, f_F) for f_F in f_NF)
    return own if gained > 0 else entry


def between(
    shared: Mapping[str, NDArray[np.float32]], own: Mapping[str, NDArray[np.float32]], weight: float
) -> dict[str, NDArray[np.float32]]:
    """The weights at this share of the way from `shared` to `own`."""
    return {name: value + np.float32(weight) * (own[name] - value) for name, value in shared.items()}


def tell_personal(institution: Institution, reply: EvaluateReply, received: Bank) -> EvaluateReply:
    """The reply with the IoU of personal entries, for the tasks where the policy lets it leave.

    Without these figures if the training fails; the institution's own log says why.
    """
    scenario, policy = institution.scenario, institution.site.policy
    wanted = {task for task in reply.results if tells_personal(scenario, task, policy)}
    if not wanted:
        return reply
    try:
        banks = personal_entries(institution, received)
        told = wanted & {task for bank in banks for task in bank.tasks}
        known = KnownEntries(received, *banks)
        figures = {task: personal_iou(institution, task, known) for task in told}
    except Exception:
        keep(f"personal entries: {traceback.format_exc()}", institution.site.log)
        return reply
    results = {task: replace(result, personal=figures.get(task)) for task, result in reply.results.items()}
    return replace(reply, results=results)


def personal_iou(institution: Institution, task: str, known: KnownEntries) -> float:
    """Mean IoU of the task's test images, routed and segmented with `known`."""
    evaluator = institution.evaluator()
    data, samples = institution.encoded(task, institution.scenario.evaluation.split)
    pairs = ((sample, evaluator.routed(task, sample, data, known)) for sample in samples)
    return float(np.mean([evaluator.segment(task, s, data, known, route).mean.iou for s, route in pairs]))


def with_personal(institution: Institution, own: KnownEntries, received: Bank) -> KnownEntries:
    """All that answers here, personal entries before `own`; also as one bank, for `casam predict`."""
    known = own.over(*personal_entries(institution, received))
    folder = institution.site.private / SITE_BANK
    remove_folder(folder)
    whole = Bank.open(folder, create=True)
    if digest := frame_named(institution.scenario.router):
        FRAMES.keep(FRAMES.data(digest, institution.site.folder_of(FRAMES)), whole.frames)
    for task in known.tasks:
        whole.add_bytes(known.file_of(task).read_bytes())
    return known
