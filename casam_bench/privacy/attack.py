"""What attacks find with and without privacy: membership inference against layers and routers, and its
control.

Every image is synthetic (casam_bench/privacy/synthetic_site.py); what is attacked was made by the product's
own
training and routers. The layer's first row is the positive control: a site that over-trains without any
protection. Where an attack found nothing there, finding nothing under privacy would mean nothing, so the
benchmark fails. It fails, too, where an attack refutes an epsilon. `--images` does not apply: images cost
nothing here.
"""

from __future__ import annotations

from dataclasses import replace

from casam_bench.bench import Figures, Surroundings
from casam_bench.privacy import attack_layers, attack_routers
from casam_bench.privacy.attack_rows import Claims, Size, claimed
from casam_core.errors import RunError

FOUND = 0.6
"""AUC that the positive control must reach."""


def run(around: Surroundings) -> Figures:
    """Layers, then routers: of one large site, and of many small ones whose images are looked at together."""
    return measure(around, Size())


def measure(around: Surroundings, size: Size) -> Figures:
    """Figures `auc_WHAT_ROW_ATTACK`, `tpr_at_1pct_fpr_...`, `epsilon_...` (lower bounds). Raises RunError."""
    claims: Claims = []
    figures = attack_layers.measure(around, size, claims)
    figures |= attack_routers.measure(around, replace(size, sites=1, small=size.members), claims)
    figures |= attack_routers.measure(around, size, claims)
    check(figures, claims)
    return figures


def check(figures: Figures, claims: Claims) -> None:
    """Raise RunError where a claim was refuted, or where nothing can be concluded from the figures."""
    if refuted := [claimed(claim) for claim in claims if claim.refuted]:
        raise RunError(f"an attack refutes an epsilon: {'; '.join(refuted)}")
    control = max(value for name, value in figures.items() if name.startswith("auc_layer_control_"))
    if control < FOUND:
        raise RunError(
            f"the positive control found nothing (AUC {control:.3f}): no figure here means anything"
        )
