"""The memory of sums: with whom this institution added up what, over all runs of its home.

Sums over different members can be combined to the value of one: {a, b, c, d} - {a, b, c} = d, and also
{a, ..., g} - {a, b, c} - {d, e, f} = g, where g took part in one sum only. An institution therefore adds up
each kind of release of a dataset with the same members every time, and refuses others. An answer that leaves
alone is a sum of one. Then all sums are over equal or disjoint sets. The server chooses tasks, rounds, seeds
and runs, so they separate nothing.

A line is on disk before the institution agrees to the list of members in a sum, and without enough agreements
nobody unmasks it. Sums that were not agreed to do not count. A release with noise of its own is not
remembered: a difference of such sums shows shares that carry their own noise, which the ledger has paid for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from casam_core.config.data_spec import overlap
from casam_core.files import HOSTED, RecordLog
from casam_core.protocol.audit import now
from casam_core.protocol.messages import AlignReply
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.secure_sum import Sum
from client.institution import Institution


@dataclass(frozen=True)
class Added:
    """One sum, or an answer that left alone. time: UTC. sum: its id; "" if alone. kind: of the release.
    datasets: locations. members: names, sorted."""

    time: str
    run: str
    sum: str
    kind: str
    datasets: tuple[str, ...]
    members: tuple[str, ...]


def check_members_before(
    institution: Institution, about: Sum, tasks: Sequence[str], members: Collection[str]
) -> None:
    """Raise RefusalError (other-members) if an earlier sum of the same images had other members.

    tasks: those whose images the institution's share is made from.
    """
    if not has_noise(institution, about.kind):
        found = added_at(institution, about.kind, tasks, members)
        check_against(sums_log(institution.site.sums).lines(), found)


def remember(institution: Institution, about: Sum, tasks: Sequence[str], members: Collection[str]) -> None:
    """Write down a sum; the line is on disk when this returns. Raises like check_members_before."""
    if not has_noise(institution, about.kind):
        found = added_at(institution, about.kind, tasks, members, about.id)
        sums_log(institution.site.sums).add(found, lambda lines: check_against(lines, found))


def remember_alone(institution: Institution, kind: str, tasks: Sequence[str]) -> None:
    """Write down, once, that this kind of answer leaves alone. Raises like check_members_before."""
    if has_noise(institution, kind):
        return
    found, log = added_at(institution, kind, tasks, [institution.name]), sums_log(institution.site.sums)
    if not any(replace(line, time=found.time, run=found.run) == found for line in log.lines()):
        log.add(found, lambda lines: check_against(lines, found))


def has_noise(institution: Institution, kind: str) -> bool:
    """Whether this institution adds noise of its own to this kind of release."""
    policy = institution.site.policy
    return (policy.adapter if kind == AlignReply.kind else policy.router).noise == "dp"


def added_at(
    institution: Institution, kind: str, tasks: Sequence[str], members: Collection[str], number: str = ""
) -> Added:
    """A sum as a line of the memory. number: its id."""
    datasets = tuple(sorted({institution.dataset(task) for task in tasks if task in institution.held}))
    return Added(now(), institution.site.run, number, kind, datasets, tuple(sorted(members)))


def check_against(lines: Sequence[Added], found: Added) -> None:
    """Raise RefusalError (other-members) if a line has the same kind and images, but other members."""
    for line in lines:
        same = any(overlap(one, other) for one in line.datasets for other in found.datasets)
        if line.kind != found.kind or not same:
            continue
        if difference := set(line.members) ^ set(found.members):
            raise RefusalError(
                Outcome.OTHER_MEMBERS,
                f"{found.kind}: the sum of {line.time} in run {line.run} had other members "
                f"({', '.join(sorted(difference))}); without noise, sums over different members reveal parts",
            )


@lru_cache(maxsize=HOSTED)
def sums_log(path: Path) -> RecordLog[Added]:
    """The one log of this process for a file."""
    fault = "a secure sum; restore the file from a backup, because without it earlier sums can be subtracted"
    return RecordLog(path, Added, fault)
