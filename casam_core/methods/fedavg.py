"""Federated averaging of one shared layer, everybody in every stage: no sequence, so nothing to forget.

It needs all institutions from the first stage on; one that may not keep samples drops out after the
stage of its task.
"""

from __future__ import annotations

from casam_core.methods.base import Cohort, Method, by_shared_entry


def everybody(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """All institutions, on all their tasks of the stream that they (still) have images of."""
    return {
        name: tasks
        for name, held in cohort.held.items()
        if (tasks := tuple(task for task in sorted(held) if task not in cohort.seen or name in cohort.keeps))
    }


METHOD = Method(
    "One shared layer, federated averaging over all institutions in every stage.",
    shared=True,
    route=by_shared_entry,
    trainers=everybody,
)
