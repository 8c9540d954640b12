"""Make an entry, for the server's bank or for an institution that keeps its entry to itself."""

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
from casam_core.routing.routers.public_frame import frame_named


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
    correction: float | None = None,
) -> Entry:
    """The entry of a task, with everything that its use needs.

    Args:
        backbone: SHA-256 of the frozen weights.
        improved: if False, the task keeps the identity.
        images: the number of training images of all holders together.
        threshold: None for an entry that can only be used by its name.
        correction: of the decoder's estimates with this layer; the identity has none.
    """
    alignment = alignment_of(scenario, task)
    # For another kind of router, an entry records the VAE's defaults; the entry format requires them.
    scored = scenario.router if isinstance(scenario.router, VaeSpec) else VaeSpec()
    kept = rounded if scenario.bank.precision == "float16" else dict
    return Entry(
        task=task,
        layer=kept(layer if improved else identity_like(layer)),
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
            frame=frame_named(scenario.router),
        ),
        correction=correction if improved else None,
    )


def rounded(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays with matrices in half precision. Vectors, e.g. of variances, can be too small for that."""
    return {name: half(value) if value.ndim > 1 else value for name, value in arrays.items()}


def half(value: NDArray[Any]) -> NDArray[Any]:
    """The array as float16; unchanged if a number is too large for it."""
    with np.errstate(over="ignore"):
        small = value.astype(np.float16)
    return small if np.isfinite(small).all() else value
