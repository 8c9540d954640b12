"""One question to several institutions: openly to those whose policy lets it, the rest in a secure sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from casam_core.protocol.payload import Payload
from server.federation.exchange import all_settled, results
from server.federation.federation import Federation
from server.federation.secagg import SecureSum, secure_sum

T = TypeVar("T")

Learned = Literal["adapter", "router"]
"""Which part of the policies counts."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """One reply, and whose work is in it: one institution's, or that of all members of a secure sum."""

    names: tuple[str, ...]
    reply: T
    summed: bool


@dataclass(frozen=True)
class Gathered(Generic[T]):
    """All replies. refused: there is none, and to ask again would not change that."""

    parts: tuple[Part[T], ...]
    refused: bool

    @property
    def replies(self) -> tuple[T, ...]:
        """A secure sum is one reply."""
        return tuple(part.reply for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Whose work is in them."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def summed(self) -> tuple[str, ...]:
        """Whose work is in a secure sum."""
        return tuple(name for part in self.parts if part.summed for name in part.names)


def gather(
    federation: Federation,
    kind: str,
    questions: Mapping[str, Payload],
    of: Callable[[Payload], T],
    *,
    learned: Learned,
    deadline: float,
) -> Gathered[T]:
    """Ask (Federation.ask), and note of every release among how many institutions it hides."""
    members = federation.members
    secret = [n for n in questions if getattr(members[n].policy, learned).aggregation == "secagg"]
    # A sum of one is no sum: asked openly, the institution refuses by its own policy.
    together = secret if len(secret) > 1 else []
    openly = {name: question for name, question in questions.items() if name not in together}
    answers = federation.ask(kind, openly, of, deadline=deadline)
    parts = [Part((name,), reply, summed=False) for name, reply in results(answers).items()]
    total = SecureSum((), None, refused=True)
    if together:
        total = secure_sum(federation, kind, {name: questions[name] for name in together}, deadline)
    if total.payload is not None:
        parts.append(Part(total.members, of(total.payload), summed=True))
    gathered = Gathered(tuple(parts), refused=not parts and all_settled(answers) and total.refused)
    for part in parts:
        others = len(part.names if part.summed else gathered.names) - 1
        for name in part.names:
            federation.counters.hides(name, learned, len(part.names), max(others, 1))
    return gathered
