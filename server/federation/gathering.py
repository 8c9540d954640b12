"""One question to several institutions: openly if their policy allows it, otherwise in a secure sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from casam_core.protocol.messages import AlignReply
from casam_core.protocol.payload import Job
from casam_core.protocol.schema import Message
from server.federation.exchange import all_settled, results
from server.federation.federation import Federation
from server.federation.secagg import SecureSum, secure_sum

R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Contribution(Generic[R]):
    """One reply. names: the institutions whose work is in it; all members in the case of a secure sum."""

    names: tuple[str, ...]
    reply: R
    summed: bool


@dataclass(frozen=True)
class Gathered(Generic[R]):
    """All replies. refused: there is no reply, and asking again would not change this. unwilling: the
    institutions that refused."""

    parts: tuple[Contribution[R], ...]
    refused: bool
    unwilling: frozenset[str] = frozenset()

    @property
    def replies(self) -> tuple[R, ...]:
        """All replies; a secure sum is one reply."""
        return tuple(part.reply for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The institutions whose work is in the replies."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def summed(self) -> tuple[str, ...]:
        """The institutions whose work is in a secure sum."""
        return tuple(name for part in self.parts if part.summed for name in part.names)


def gather(federation: Federation, requests: Mapping[str, Message], reply: type[R]) -> Gathered[R]:
    """Ask institutions, in a secure sum if policies require it, and record the anonymity of each release."""
    members = federation.members
    learned = "adapter" if reply.kind == AlignReply.kind else "router"  # which part of the policies counts
    secret = [n for n in requests if getattr(members[n].policy, learned).aggregation == "secagg"]
    # A sum of one institution hides nothing: it is asked openly, and its own policy then refuses.
    together = secret if len(secret) > 1 else []
    openly = {name: request for name, request in requests.items() if name not in together}
    answers = federation.ask(openly, reply)
    parts = [Contribution((name,), said, summed=False) for name, said in results(answers).items()]
    total = SecureSum((), None, refused=True)
    if together:
        total = secure_sum(federation, reply.kind, {name: requests[name].to_payload() for name in together})
    if total.payload is not None:
        parts.append(Contribution(total.members, reply.of(total.payload), summed=True))
    unwilling = {name for name, answer in answers.items() if answer.refused}
    unwilling.update(together if total.payload is None and total.refused else ())
    gathered = Gathered(
        tuple(parts), not parts and all_settled(answers) and total.refused, frozenset(unwilling)
    )
    count_anonymity(federation, learned, requests, gathered)
    return gathered


def count_anonymity(
    federation: Federation, learned: str, requests: Mapping[str, Message], gathered: Gathered[R]
) -> None:
    """Record among how many institutions each sender hides. learned: adapter or router."""
    for part in gathered.parts:
        if part.summed:
            task = Job.of(requests[part.names[0]].to_payload()).task
            federation.counters.added(learned, f"{part.reply.kind} {task}", part.names)
        else:
            # Krum passes one holder's layer on as it is; the others of a mean hide in it.
            chosen = learned == "adapter" and federation.scenario.training.strategy == "krum"
            among = 1 if chosen else max(len(gathered.names) - 1, 1)
            federation.counters.hides(part.names[0], learned, 1, among)
