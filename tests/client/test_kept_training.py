"""A simulated institution trains nothing twice; a real one keeps no trained layers."""

from __future__ import annotations

import stat
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from casam_core.protocol.messages import AlignReply, AlignRequest
from casam_core.protocol.payload import Job
from client.simulation.kept_training import trained_once
from tests.conftest import tiny_table
from tests.runs import FinishedRun, private

REPLY = AlignReply({"w": np.zeros(2, np.float32)}, images=4)


def test_a_run_keeps_one_answer_for_each_training(finished_run: FinishedRun) -> None:
    run = finished_run(tiny_table())
    kept = {name: private(run, name) / "trained" for name in ("north", "south", "west")}
    assert {name: len(list(folder.rglob("*.bin"))) for name, folder in kept.items()} == {
        "north": 1,
        "south": 1,
        "west": 1,
    }
    assert all(stat.S_IMODE((folder / "alone").stat().st_mode) == 0o700 for folder in kept.values())


def test_a_real_institution_keeps_nothing() -> None:
    real = cast(Any, SimpleNamespace(site=SimpleNamespace(simulated=False)))
    request = AlignRequest(Job("north", 1, "polyp"), layer=None)
    assert trained_once(real, request, lambda: REPLY) is REPLY  # no folder is looked at


def test_images_of_others_are_not_remembered() -> None:
    simulated = cast(Any, SimpleNamespace(site=SimpleNamespace(simulated=True)))
    request = AlignRequest(Job("north", 1, "polyp"), layer=None, pooled=True)
    assert trained_once(simulated, request, lambda: REPLY) is REPLY
