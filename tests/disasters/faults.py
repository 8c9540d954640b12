"""What can go wrong, and the plan of a seed: a federation and a few faults, each at a moment of its own."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from tests.disasters.homes import CASES, SERVER, SITES

REQUESTS, SECONDS, CALLS = 45, 12.0, {SERVER: 460, **dict.fromkeys(SITES, 150)}
"""About how many requests, seconds and changing calls of each machine an undisturbed run has."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    kind: a key of KINDS. who: the machine, or "" where a request names it. at: a number of a call or of a
    request, or a second. amount: seconds, calls, or which of the earlier things. code: what a disk answers;
    of an upgrade, 1 if the node does not look at the server's version itself.
    """

    kind: str
    who: str = ""
    at: float = 0
    amount: float = 0
    code: int = 0

    def __str__(self) -> str:
        words = KINDS[self.kind].format(f=self, at=int(self.at), error=errno.errorcode.get(self.code, ""))
        return words


KINDS: Mapping[str, str] = {
    "cut": "{f.who}: the power goes before call {at}; back after {f.amount:.1f} s",
    "cut-after": "{f.who}: the power goes after call {at}; back after {f.amount:.1f} s",
    "stop": "{f.who}: killed after {f.at:.1f} s; back after {f.amount:.1f} s",
    "new-disk": "{f.who}: its disk is lost after {f.at:.1f} s; back with what was provisioned",
    "upgrade": "{f.who}: killed after {f.at:.1f} s, comes back with another version; with the server's after "
    "{f.amount:.1f} s",
    "rollback": "{f.who}: after {f.at:.1f} s its home is put back as it was after {f.amount:.1f} s",
    "disk": "{f.who}: the disk answers {error} from call {at} on, {f.amount:.0f} times",
    "rot": "{f.who}: after {f.at:.1f} s one byte of a file is another",
    "partition": "{f.who}: no message to or from it for {f.amount:.1f} s after {f.at:.1f} s",
    "lose-request": "request {at} is lost",
    "lose-reply": "the reply to request {at} is lost",
    "late-request": "request {at} arrives {f.amount:.1f} s late",
    "late-reply": "the reply to request {at} arrives {f.amount:.1f} s late",
    "twice": "request {at} arrives twice, the second time {f.amount:.1f} s later",
    "reply-twice": "the reply to request {at} arrives twice",
    "stale": "with request {at} an earlier one arrives again",
    "forged": "with request {at} an earlier one arrives again under a new number",
    "damaged-request": "request {at} arrives damaged",
    "damaged-reply": "the reply to request {at} arrives damaged",
    "clock": "after {f.at:.1f} s all clocks jump by {f.amount:.0f} s",
    "second-server": "after {f.at:.1f} s a second server is started on the run folder",
}
"""By kind, its sentence."""

HARMLESS = frozenset(
    (
        "cut",
        "cut-after",
        "stop",
        "upgrade",
        "disk",
        "partition",
        "late-request",
        "twice",
        "reply-twice",
        "stale",
        "clock",
    )
) | {"lose-request", "lose-reply", "late-reply", "second-server", "forged", "damaged-request"}
"""Faults after which a run can still be finished, and every site's files are good."""


@dataclass(frozen=True)
class Plan:
    """A world: the federation and its faults. seed: of what survives a power cut, and other small choices."""

    seed: int
    case: str
    faults: tuple[Fault, ...]


def plan_of(seed: int) -> Plan:
    """The plan of a seed."""
    draw = Random(f"plan {seed}")
    case = draw.choice([name for name in CASES for _ in range(1 if name == "secret" else 3)])
    count = draw.choice((1, 1, 2, 2, 3, 4, 6))
    return Plan(seed, case, tuple(fault(draw) for _ in range(count)))


def fault(draw: Random) -> Fault:
    """One fault."""
    kind = draw.choice([*KINDS, "cut", "cut", "cut", "cut-after", "cut-after", "disk"])
    site = draw.choice(SITES)
    machine = draw.choice((SERVER, SERVER, *SITES))
    second = round(draw.uniform(0, SECONDS), 2)
    if kind in ("cut", "cut-after"):
        return Fault(kind, machine, draw.randint(1, CALLS[machine]), round(draw.uniform(0.1, 30), 1))
    if kind == "stop":
        return Fault(kind, site, second, round(draw.uniform(0.1, 30), 1))
    if kind == "upgrade":
        return Fault(kind, site, second, draw.choice((5.0, 25.0, 150.0)), draw.choice((0, 1)))
    if kind == "new-disk":
        return Fault(kind, site, second)
    if kind == "rollback":
        return Fault(kind, site, second, round(draw.uniform(0, second), 2))
    if kind == "disk":
        code = draw.choice((errno.ENOSPC, errno.EIO, errno.EROFS))
        return Fault(kind, machine, draw.randint(1, CALLS[machine]), draw.choice((1, 2, 5, 20)), code)
    if kind == "rot":
        return Fault(kind, machine, second)
    if kind == "partition":
        return Fault(kind, site, second, round(draw.uniform(0.5, 60), 1))
    if kind == "clock":
        return Fault(kind, "", second, draw.choice((-1e6, -3600, 3600, 1e6)))
    if kind == "second-server":
        return Fault(kind, SERVER, second)
    late = draw.choice((0.3, 2.0, 40.0, 200.0))
    return Fault(kind, "", draw.randint(1, REQUESTS), late)
