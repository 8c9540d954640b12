"""Trained layers that a simulated institution keeps, so that it computes no round of training twice.

A stage that a resumed run repeats reads them, and so does `casam ask`, which replays a finished run under
another policy. Real institutions keep none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from casam_core.files import make_folder, write_atomic
from casam_core.protocol.messages import AlignReply, AlignRequest, may_correct, question_of
from casam_core.protocol.payload import Payload, digest_of
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records

if TYPE_CHECKING:
    from client.institution import Institution

LARGEST = 1 << 20
"""Bytes of an answer that is kept. The two forms of 14 MB are trained again."""

ALONE, MERGED = "alone", "merged"
"""Folders: of rounds from new weights, and of rounds from the weights of others, which unlearning deletes."""


def trained_once(
    institution: Institution, request: AlignRequest, train: Callable[[], AlignReply], *, private: bool = False
) -> AlignReply:
    """The answer to `request`: as it was kept, else trained now and kept.

    private: whether `train` adds noise. After a refusal the same request is answered without, for itself.
    """
    if not institution.site.simulated or request.pooled:
        return train()
    alone = request.layer is None and request.anchor is None and request.importance is None
    folder = institution.trained / (ALONE if alone else MERGED)
    corrects = may_correct(institution.scenario, request.job, institution.site.policy)
    for told in dict.fromkeys((corrects, True)):  # a layer with its correction is also one without
        with contextlib.suppress(FileNotFoundError):
            kept = (folder / name_of(institution, request, told, private)).read_bytes()
            reply = AlignReply.of(from_records(deserialise(kept)))
            return reply if corrects else replace(reply, correction=None)
    payload = train().to_payload()
    data = serialise(to_records(payload))
    if len(data) <= LARGEST:
        make_folder(folder, 0o700)
        write_atomic(folder / name_of(institution, request, corrects, private), data)
    return AlignReply.of(payload)


def name_of(institution: Institution, request: AlignRequest, corrects: bool, private: bool) -> str:
    """A file's name: a digest of everything that the answer depends on. Layers without noise share it.

    corrects: whether the answer tells how far the decoder's estimates are off. private: whether it has noise.
    """
    scenario, site = institution.scenario, institution.site
    decided = {"seed", "method", "compute", "alignment", "alignments", "training", "privacy"}
    about: dict[str, object] = {
        "request": digest_of(question_of(request)),
        "corrects": corrects,
        "adds_noise": site.policy.adds_noise,
        "backbone": institution.backbone.digest,
        "images": {
            task: [
                institution.dataset(task),
                institution.task(task).division,
                site.tasks[task].model_dump(mode="json"),
            ]
            for task in request.trains_on
            if task in site.tasks
        },
    }
    if site.policy.finder != "yes":  # its absence keeps the names of earlier files
        about["finder"] = site.policy.finder
    if private:
        about["private"] = True
        decided |= {"router"}
        clauses = {"adapter", "router", "metrics", "budget"}
        about["policy"] = site.policy.model_dump(mode="json", include=clauses)
        about["draw"] = institution.draw
    about["scenario"] = scenario.model_dump(mode="json", include=decided)
    return f"{digest_of(Payload({'about': json.dumps(about, sort_keys=True)}))}.bin"
