"""Federated averaging of one shared layer, everybody in every stage: no sequence, so nothing to forget.

It needs all institutions, with all their images, from the first stage on.
"""

from __future__ import annotations

from casam_core.methods.base import Cohort, Method, by_shared_entry


def everybody(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """All institutions, on all their tasks of the stream."""
    return {name: tuple(sorted(tasks)) for name, tasks in cohort.held.items() if tasks}


METHOD = Method(
    "One shared layer, federated averaging over all institutions in every stage.",
    shared=True,
    route=by_shared_entry,
    trainers=everybody,
)
