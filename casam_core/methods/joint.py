"""Joint training on pooled data: the upper bound that breaks the premise. In simulations only."""

from __future__ import annotations

from casam_core.methods.base import Cohort, Method, by_shared_entry


def one_for_all(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The first institution trains on everybody's images of the tasks seen so far."""
    first = next((name for name, tasks in cohort.held.items() if cohort.task in tasks), None)
    return {} if first is None else {first: (*cohort.seen, cohort.task)}


METHOD = Method(
    "One shared layer trained on all images pooled: breaks the privacy premise, a bound for comparison.",
    shared=True,
    route=by_shared_entry,
    trainers=one_for_all,
    pools=True,
)
