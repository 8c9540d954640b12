"""What a run counts about its institutions over all stages. A resumed run continues the counts."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Traffic:
    """Bytes of serialised records per institution. up: from the institution; down: to it."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def add(self, direction: dict[str, int], institution: str, count: int) -> None:
        """Add `count` bytes to `direction`, which is `up` or `down`."""
        direction[institution] = direction.get(institution, 0) + count


@dataclass
class Counters:
    """All counts are by institution. releases: answers. refusals: by outcome. rejections: invalid answers, by
    kind of request. epsilon: spent so far, from the last answer. anonymity[name][release]: among how many
    institutions the server, and a co-holder, cannot tell the sender of a release; the minimum of the run.
    sums: by question (kind and task), the members of each different secure sum."""

    traffic: Traffic = field(default_factory=Traffic)
    releases: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)
    rejections: dict[str, dict[str, int]] = field(default_factory=dict)
    epsilon: dict[str, dict[str, float]] = field(default_factory=dict)
    anonymity: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    sums: dict[str, list[list[str]]] = field(default_factory=dict)

    def released(self, name: str) -> None:
        """Count one answer."""
        self.releases[name] = self.releases.get(name, 0) + 1

    def refused(self, name: str, outcome: str) -> None:
        """Count one refusal."""
        outcomes = self.refusals.setdefault(name, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def rejected(self, name: str, kind: str) -> None:
        """Count one invalid answer."""
        kinds = self.rejections.setdefault(name, {})
        kinds[kind] = kinds.get(kind, 0) + 1

    def hides(self, name: str, release: str, server: int, co_holder: int) -> None:
        """Record the anonymity of one release: among how many institutions the sender cannot be told."""
        known = self.anonymity.setdefault(name, {}).setdefault(
            release, {"server": server, "co_holder": co_holder}
        )
        known["server"] = min(known["server"], server)
        known["co_holder"] = min(known["co_holder"], co_holder)

    def added(self, release: str, question: str, members: Collection[str]) -> None:
        """Record the anonymity of a secure sum: that of all sums of one question together.

        Whoever has two sums can subtract them. What remains belongs to the institutions that are in one of
        them only.
        """
        known = self.sums.setdefault(question, [])
        for hidden in (set(members), *(set(members) ^ set(earlier) for earlier in known)):
            for name in hidden:
                self.hides(name, release, len(hidden), max(len(hidden) - 1, 1))
        if sorted(members) not in known:
            known.append(sorted(members))

    def as_dict(self) -> dict[str, Any]:
        """A copy, as the state of a run keeps it."""
        counted = {name: value for name, value in vars(self).items() if name != "traffic"}
        return copy.deepcopy({**counted, "up": self.traffic.up, "down": self.traffic.down})

    @staticmethod
    def from_dict(counted: Mapping[str, Any]) -> Counters:
        """The inverse of as_dict."""
        known = copy.deepcopy(dict(counted))
        return Counters(Traffic(known.pop("up"), known.pop("down")), **known)
