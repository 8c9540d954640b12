"""The fewest faults that still break the same law."""

from __future__ import annotations

from dataclasses import replace

from tests.disasters.faults import Fault
from tests.disasters.playing import play
from tests.disasters.world import Played


def shrink(played: Played, tries: int = 60) -> Played:
    """A plan of as few faults as possible, as small as possible, that breaks the first law of `played`."""
    law, best = played.broken[0], played

    def breaks(faults: tuple[Fault, ...]) -> bool:
        nonlocal best, tries
        if tries <= 0:
            return False
        tries -= 1
        again = play(replace(best.plan, faults=faults))
        if law in again.broken:
            best = again
            return True
        return False

    number = 0
    while number < len(best.plan.faults):
        without = best.plan.faults[:number] + best.plan.faults[number + 1 :]
        if not breaks(without):
            number += 1
    for number, fault in enumerate(best.plan.faults):
        for smaller in (0.1, 0.3, 2.0):  # a short pause makes a shorter story
            if fault.amount > smaller and fault.kind != "rollback":
                faults = list(best.plan.faults)
                faults[number] = replace(fault, amount=smaller)
                if breaks(tuple(faults)):
                    break
    return best


def story(played: Played) -> str:
    """What happens in a world, for a reader."""
    plan = played.plan
    lines = [f"seed {plan.seed}, federation {plan.case}"]
    lines += [f"  fault: {fault}" for fault in plan.faults] or ["  no fault"]
    lines += ["what happened:", *(f"  {line}" for line in played.story), f"  the end: {played.end}"]
    lines += [f"BROKEN: {law}" for law in played.broken] or ["every law holds"]
    return "\n".join(lines)
