"""Bugs that are put into the product on purpose: the simulation must find each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import casam_core.files
import client.dp.paid_release
from casam_core.files import LockedLog
from tests.disasters.faults import plan_of
from tests.disasters.playing import know, play
from tests.disasters.simulated_os import SimulatedOs
from tests.disasters.world import Played


@contextlib.contextmanager
def no_fsync() -> Iterator[None]:
    """A line of a log is not synced."""
    append = LockedLog.append

    def unsynced(self: Any, make: Any) -> Any:
        with patch.object(SimulatedOs, "fsync", lambda self, handle: None):
            return append(self, make)

    with patch.object(LockedLog, "append", unsynced):
        yield


@contextlib.contextmanager
def ledger_after_send() -> Iterator[None]:
    """The cost of a private release is written down after the release was made."""
    module = client.dp.paid_release
    reserve, waiting = module.reserve, []  # type: ignore[var-annotated]

    def later(*cost: Any) -> None:
        waiting.append(cost)

    def once(institution: Any, job: Any, kind: str, request: Any, **rest: Any) -> Any:
        released = release_once(institution, job, kind, request, **rest)
        while waiting:
            reserve(*waiting.pop(0))
        return released

    release_once = module.release_once
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(module, "reserve", later))
        for user in ("client.dp.noisy_layer", "client.dp.noisy_metrics", "client.evaluation.canary"):
            stack.enter_context(patch(f"{user}.release_once", once))
        yield


@contextlib.contextmanager
def trusts_a_torn_file() -> Iterator[None]:
    """A torn last line of a log is not removed; the next line is written behind it."""
    with patch.object(SimulatedOs, "ftruncate", lambda self, handle, length: None):
        yield


@contextlib.contextmanager
def answers_again() -> Iterator[None]:
    """A request that was answered before is answered again."""

    def nothing(request: str, lines: object) -> None:
        pass

    with patch("client.release.outbox.check_once", nothing), patch("client.client_app.check_once", nothing):
        yield


@contextlib.contextmanager
def acknowledged_before_the_rename() -> Iterator[None]:
    """A private release counts as kept before its name is on the disk."""

    def early(path: Path, data: bytes) -> None:
        with patch("casam_core.files._sync_folder", lambda folder: None):
            casam_core.files.write_atomic(path, data)

    with patch("client.dp.paid_release.write_atomic", early):
        yield


PLANTED = {
    "fsync left out": no_fsync,
    "ledger after send": ledger_after_send,
    "resume that trusts a torn file": trusts_a_torn_file,
    "stale request answered": answers_again,
    "acknowledgement before the rename": acknowledged_before_the_rename,
}


def first_seed(name: str, most: int = 5000) -> Played | None:
    """The first seed that finds a planted bug."""
    for seed in range(most):
        know(plan_of(seed).case)
        with PLANTED[name]():
            played = play(plan_of(seed))
        if played.broken:
            return played
    return None
