"""Making an entry: the same for the server's bank and for what an institution keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.bank.entry_file import Entry, Provenance
from casam_core.config.scenario import Scenario
from casam_core.methods import alignment_of
from casam_core.model.forms import rank_of
from casam_core.model.forms.affine import identity_like
from casam_core.routing.routers import Arrays, VaeSpec


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
    # Of another kind of router an entry records the VAE's defaults, as it always did.
    scored = scenario.router if isinstance(scenario.router, VaeSpec) else VaeSpec()
    kept = rounded if scenario.bank.precision == "float16" else dict
    return Entry(
        task=task,
        layer=kept(layer) if improved else identity_like(layer),
        router=kept(router),
        threshold=threshold,
        provenance=Provenance(
            form=alignment.form if improved else "identity",
            rank=rank_of(alignment),
            router=scenario.router.kind,
            features=scenario.router.features,
            beta=scored.beta,
            sampled=scored.sampled,
            backbone=backbone,
            holders=holders,
            images=images,
            stage=stage,
            scenario=scenario.learned_digest(),
        ),
    )


def rounded(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Matrices in half precision. Vectors (variances, norms, shifts) are few bytes and may be tiny."""
    return {name: half(value) if value.ndim > 1 else value for name, value in arrays.items()}


def half(value: NDArray[Any]) -> NDArray[Any]:
    """float16; as it was where a number is too large for it."""
    with np.errstate(over="ignore"):
        small = value.astype(np.float16)
    return small if np.isfinite(small).all() else value
