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
class Gathered(Generic[T]):
    """openly: by institution. summed, members: one answer of all in the secure sum together, and who they
    are. refused: nobody's answer counts, and asking again would not change it."""

    openly: Mapping[str, T]
    summed: T | None
    members: tuple[str, ...]
    refused: bool

    @property
    def replies(self) -> tuple[T, ...]:
        """Everything that came."""
        return (*self.openly.values(), *(() if self.summed is None else (self.summed,)))

    @property
    def names(self) -> tuple[str, ...]:
        """Whose work is in it."""
        return (*self.openly, *self.members)


def gather(
    federation: Federation,
    kind: str,
    questions: Mapping[str, Payload],
    of: Callable[[Payload], T],
    *,
    learned: Learned,
    deadline: float,
) -> Gathered[T]:
    """Ask, and note of every release among how many institutions it hides."""
    members = federation.members
    secret = [n for n in questions if getattr(members[n].policy, learned).aggregation == "secagg"]
    # A sum of one is no sum: asked openly, the institution refuses by its own policy.
    together = secret if len(secret) > 1 else []
    openly = {name: question for name, question in questions.items() if name not in together}
    answers = federation.ask(kind, openly, of, deadline=deadline)
    replies = results(answers)
    summed = SecureSum((), None, refused=True)
    if together:
        summed = secure_sum(federation, kind, {name: questions[name] for name in together}, deadline)
    gathered = Gathered(
        openly=replies,
        summed=None if summed.payload is None else of(summed.payload),
        members=summed.members,
        refused=not replies and not summed.members and all_settled(answers) and summed.refused,
    )
    for name in gathered.names:
        hidden = name in gathered.members
        among = len(gathered.members) if hidden else 1
        others = len(gathered.members if hidden else gathered.names) - 1
        federation.counters.hides(name, learned, among, max(others, 1))
    return gathered
