"""Experience replay at the site: holders of earlier tasks join every later stage with their own images.

Nothing is sent that other methods do not send; but an institution must be allowed to keep samples.
"""

from __future__ import annotations

from casam_core.methods.base import Cohort, Method, by_shared_entry


def with_those_who_kept(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The stage's holders, and institutions that may keep samples with the tasks they learned earlier."""
    return {
        name: tasks
        for name, held in cohort.held.items()
        if (
            tasks := tuple(
                task
                for task in (*cohort.seen, cohort.task)
                if task in held and (task == cohort.task or name in cohort.keeps)
            )
        )
    }


METHOD = Method(
    "One shared layer; earlier holders that may keep samples train along in every later stage.",
    shared=True,
    route=by_shared_entry,
    trainers=with_those_who_kept,
)
