"""Membership inference against layers and routers with and without privacy, and a positive control.

All images are synthetic (casam_bench/privacy/synthetic_site.py). The product's own training and routers make
the attacked layers and states. The layer's first row is the positive control: a site that over-trains without
any protection. If attacks find nothing there, the other figures mean nothing, so the benchmark fails. It also
fails if an attack refutes an epsilon, or if an audit does not find a mechanism that is broken on purpose.
`--images` has no effect, because these images cost nothing.
"""

from __future__ import annotations

from dataclasses import replace

from casam_bench.bench import Figures, Surroundings
from casam_bench.privacy import attack_canaries, attack_layers, attack_routers
from casam_bench.privacy.attack_rows import Claims, Size, claimed
from casam_core.errors import RunError

FOUND = 0.6
"""AUC that the positive control must reach."""


def run(around: Surroundings) -> Figures:
    """Layers, then routers: of one large site, and of many small sites with their scores taken together."""
    return measure(around, Size())


def measure(around: Surroundings, size: Size) -> Figures:
    """Figures `auc_WHAT_ROW_ATTACK`, `tpr_at_1pct_fpr_...`, `epsilon_...` (lower bounds). Raises RunError."""
    claims: Claims = []
    figures = attack_layers.measure(around, size, claims)
    figures |= attack_routers.measure(around, replace(size, sites=1, small=size.members), claims)
    figures |= attack_routers.measure(around, size, claims)
    check(figures, claims)
    return figures | attack_canaries.measure(around, size)


def check(figures: Figures, claims: Claims) -> None:
    """Raise RunError if a claim was refuted, or if the positive control failed."""
    if refuted := [claimed(claim) for claim in claims if claim.refuted]:
        raise RunError(f"an attack refutes an epsilon: {'; '.join(refuted)}")
    control = max(value for name, value in figures.items() if name.startswith("auc_layer_control_"))
    if control < FOUND:
        raise RunError(
            f"the positive control found nothing (AUC {control:.3f}), so these figures mean nothing"
        )
