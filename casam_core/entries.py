"""Making an entry: the same for the server's bank and for what an institution keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from casam_core.alignment.identity import identity_like
from casam_core.bank import Entry, Provenance
from casam_core.methods import alignment_of
from casam_core.routers import Arrays
from casam_core.scenario import Scenario


def make_entry(
    scenario: Scenario,
    backbone: str,
    *,
    task: str,
    stage: int,
    layer: Mapping[str, NDArray[np.float32]],
    improved: bool,
    holders: tuple[str, ...],
    images: int,
    router: Arrays,
    threshold: float | None,
) -> Entry:
    """The task's entry with all that is needed to use it.

    backbone: SHA-256 of the frozen weights. improved: off, the task keeps the identity. threshold: None
    for an entry that is used by its name alone.
    """
    alignment = alignment_of(scenario, task)
    return Entry(
        task=task,
        layer=dict(layer) if improved else identity_like(layer),
        router=dict(router),
        threshold=threshold,
        provenance=Provenance(
            form=alignment.form if improved else "identity",
            rank=alignment.rank,
            router=scenario.router.kind,
            features=scenario.router.features,
            beta=scenario.router.beta,
            sampled=scenario.router.sampled,
            backbone=backbone,
            holders=holders,
            images=images,
            stage=stage,
            scenario=scenario.learned_digest(),
        ),
    )
