"""The valid part of the holders' descriptions of a task: statistics that a router can be fitted to.

Statistics of the right form can still describe no images: a sum that is too large, or a matrix that is none
of features. Such a reply must not end the run, and not keep the other holders from having a router.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from casam_core.protocol.messages import RouterReply
from casam_core.routing.routers import Arrays, Router
from server.federation.federation import Federation
from server.federation.gathering import Gathered


def fitted(router: Router, statistics: Sequence[Arrays]) -> Arrays | None:
    """The router of all statistics together; None if it cannot be computed or is not finite."""
    with np.errstate(all="ignore"), contextlib.suppress(ArithmeticError, ValueError, RuntimeError):
        state = router.fit(router.merge(statistics))
        if all(np.isfinite(array).all() for array in state.values()):
            return state
    return None


def fitted_all(router: Router, replies: Sequence[RouterReply]) -> list[Arrays] | None:
    """The router of every fold, and last the router of all images; None if one of them is not finite."""
    parts = [*zip(*(reply.folds for reply in replies), strict=True), [reply.router for reply in replies]]
    states = [fitted(router, part) for part in parts]
    whole = [state for state in states if state is not None]
    return whole if len(whole) == len(states) else None


def usable(
    federation: Federation, stage: int, router: Router, described: Gathered[RouterReply]
) -> Gathered[RouterReply]:
    """The replies that a router can be fitted to, each alone. The others are rejected."""
    parts = []
    for part in described.parts:
        if fitted_all(router, [part.reply]) is not None:
            parts.append(part)
            continue
        for name in part.names:
            federation.reject(name, RouterReply.kind, stage, "no router fits the statistics")
    return Gathered(tuple(parts), refused=described.refused)
