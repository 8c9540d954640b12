"""The network's part of a plan: which message is lost, late, repeated, forged or damaged."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.disasters.faults import Fault
from tests.disasters.network import Sent, Weather

if TYPE_CHECKING:
    from tests.disasters.world import World


class Storm(Weather):
    """The network's part of a plan."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at: dict[int, list[Fault]] = {}
        for fault in world.plan.faults:
            if not fault.who:
                self.at.setdefault(int(fault.at), []).append(fault)

    def request(self, sent: Sent) -> list[float]:
        world = self.world
        times = [0.05 + 0.05 * world.chance("request", sent.number).random()]
        for fault in self.at.get(sent.number, ()):
            if fault.kind in ("stale", "forged") and sent.number > 1:
                earlier = world.chance("again", sent.number).randrange(sent.number - 1)
                world.again(world.network.sent[earlier], forged=fault.kind == "forged")
            elif fault.kind == "lose-request":
                times = []
            elif fault.kind == "late-request":
                times = [seconds + fault.amount for seconds in times]
            elif fault.kind == "twice":
                times = [*times, 0.2 + fault.amount]
            elif fault.kind == "damaged-request":
                sent.data = damaged(sent.data, world.chance("damage", sent.number))
            else:
                continue
            world.tell(str(fault))
        return [] if self.cut_off(sent) else times

    def reply(self, sent: Sent, data: bytes) -> list[tuple[float, bytes]]:
        world = self.world
        arrivals = [(0.05 + 0.3 * world.chance("reply", sent.number).random(), data)]
        for fault in self.at.get(sent.number, ()):
            if fault.kind == "lose-reply":
                arrivals = []
            elif fault.kind == "late-reply":
                arrivals = [(seconds + fault.amount, data) for seconds, data in arrivals]
            elif fault.kind == "reply-twice":
                arrivals = arrivals * 2
            elif fault.kind == "damaged-reply":
                draw = world.chance("damage", sent.number)
                arrivals = [(seconds, damaged(data, draw)) for seconds, data in arrivals]
            else:
                continue
            world.tell(str(fault))
        return [] if self.cut_off(sent) else arrivals

    def cut_off(self, sent: Sent) -> bool:
        """Whether the node is beyond a partition now."""
        world = self.world
        names = [node.name for node in world.network.nodes if node.number == sent.node]
        return any(
            fault.kind == "partition"
            and fault.who in names
            and fault.at <= world.clock.now <= fault.at + fault.amount
            for fault in world.plan.faults
        )


def damaged(data: bytes, draw: Random) -> bytes:
    """The bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 3, 50))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)
