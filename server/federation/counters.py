"""What a run counts about its institutions over the stages: a resumed run counts on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.federation.exchange import Traffic


@dataclass
class Counters:
    """All by institution. traffic: bytes. releases: answers. refusals: by word. rejections: by kind of
    request. epsilon: spent so far, as the last answer said. anonymity[name][release]: among how many
    institutions a release hides, from the server and from a co-holder; the least over the run."""

    traffic: Traffic = field(default_factory=Traffic)
    releases: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)
    rejections: dict[str, dict[str, int]] = field(default_factory=dict)
    epsilon: dict[str, dict[str, float]] = field(default_factory=dict)
    anonymity: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def released(self, name: str) -> None:
        """One answer more."""
        self.releases[name] = self.releases.get(name, 0) + 1

    def refused(self, name: str, word: str) -> None:
        """One refusal more."""
        words = self.refusals.setdefault(name, {})
        words[word] = words.get(word, 0) + 1

    def rejected(self, name: str, kind: str) -> None:
        """One answer more that does not count."""
        kinds = self.rejections.setdefault(name, {})
        kinds[kind] = kinds.get(kind, 0) + 1

    def hides(self, name: str, release: str, server: int, co_holder: int) -> None:
        """A release hid among so many institutions."""
        known = self.anonymity.setdefault(name, {}).setdefault(
            release, {"server": server, "co_holder": co_holder}
        )
        known["server"] = min(known["server"], server)
        known["co_holder"] = min(known["co_holder"], co_holder)

    def as_dict(self) -> dict[str, Any]:
        """A copy, as the state of a run keeps it."""
        counted = {name: value for name, value in vars(self).items() if name != "traffic"}
        return copy.deepcopy({**counted, "up": self.traffic.up, "down": self.traffic.down})

    @staticmethod
    def from_dict(counted: Mapping[str, Any]) -> Counters:
        """The inverse of as_dict."""
        known = copy.deepcopy(dict(counted))
        return Counters(Traffic(known.pop("up"), known.pop("down")), **known)
