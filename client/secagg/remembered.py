"""The memory of secure sums: with whom this institution added up what, over all runs of its home.

Two sums over almost the same institutions subtract to the difference, which can be the value of one. The
institution therefore refuses a sum whose members differ from those of an earlier one by fewer institutions
than `minimum_cohort`. The comparison is by dataset and kind of release: the server chooses tasks, rounds,
seeds and runs, so they separate nothing.

A line is on disk before the institution agrees to the list of members in a sum, and without enough agreements
nobody unmasks it. Sums that were not agreed to do not count. A release with noise of its own is not
remembered: a difference of such sums shows shares that carry their own noise, which the ledger has paid for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from casam_core.errors import PolicyError
from casam_core.files import LockedLog
from casam_core.protocol.audit import now
from casam_core.protocol.messages import AlignReply
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.secure_sum import Sum
from client.institution import Institution


@dataclass(frozen=True)
class Added:
    """One sum. time: UTC. sum: its id. kind: of the release. datasets: locations. members: names, sorted."""

    time: str
    run: str
    sum: str
    kind: str
    datasets: tuple[str, ...]
    members: tuple[str, ...]


def check_distance(
    institution: Institution, about: Sum, tasks: Sequence[str], members: Collection[str]
) -> None:
    """Raise RefusalError (sum-too-close) if a sum of these members is too close to an earlier one.

    tasks: those whose images the institution's share is made from.
    """
    if not has_noise(institution, about):
        found = added_at(institution, about, tasks, members)
        check_against(sums_log(institution.site.sums).lines(), found, institution.site.policy.minimum_cohort)


def remember(institution: Institution, about: Sum, tasks: Sequence[str], members: Collection[str]) -> None:
    """Write down a sum; the line is on disk when this returns. Raises RefusalError like check_distance."""
    if has_noise(institution, about):
        return
    found = added_at(institution, about, tasks, members)

    def make(lines: Sequence[Added]) -> tuple[Added, str]:
        check_against(lines, found, institution.site.policy.minimum_cohort)
        return found, json.dumps(asdict(found), sort_keys=True)

    sums_log(institution.site.sums).append(make)


def has_noise(institution: Institution, about: Sum) -> bool:
    """Whether this institution adds noise of its own to this kind of release."""
    policy = institution.site.policy
    return (policy.adapter if about.kind == AlignReply.kind else policy.router).noise == "dp"


def added_at(institution: Institution, about: Sum, tasks: Sequence[str], members: Collection[str]) -> Added:
    """A sum as a line of the memory."""
    datasets = tuple(sorted({institution.dataset(task) for task in tasks if task in institution.site.tasks}))
    return Added(now(), about.run, about.id, about.kind, datasets, tuple(sorted(members)))


def check_against(lines: Sequence[Added], found: Added, least: int) -> None:
    """Raise RefusalError (sum-too-close) if `found` differs from a line by 1 to `least` - 1 members."""
    for line in lines:
        if line.kind != found.kind or not set(line.datasets) & set(found.datasets):
            continue
        difference = set(line.members) ^ set(found.members)
        if 0 < len(difference) < least:
            raise RefusalError(
                Outcome.SUM_TOO_CLOSE,
                f"{found.kind}: the members differ only by {', '.join(sorted(difference))} from the sum of "
                f"{line.time} in run {line.run}; policy.minimum_cohort is {least}",
            )


@lru_cache(maxsize=4096)
def sums_log(path: Path) -> LockedLog[Added]:
    """The one log of this process for a file."""

    def parse(before: Sequence[Added], text: bytes) -> Added:
        try:
            content = json.loads(text)
            lists = {key: tuple(content[key]) for key in ("datasets", "members")}
            return Added(**{**content, **lists})
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyError(
                f"{path}: line {len(before) + 1} is not a secure sum; restore the file from a backup, "
                "because without it earlier sums can be subtracted"
            ) from error

    return LockedLog(path, parse)
