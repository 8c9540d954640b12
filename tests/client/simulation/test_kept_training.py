"""A simulated institution trains nothing twice; a real one keeps no trained layers."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from casam_core.model.forms import weights_of
from casam_core.model.forms.finder import PREFIX
from casam_core.protocol.messages import AlignReply, AlignRequest
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.payload import Job
from client.evaluation.own_entries import own_entries
from client.release import permission
from client.simulation.kept_training import trained_once
from tests.client.test_institution import institution
from tests.conftest import tiny_table
from tests.refused import refused
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


def test_another_policy_gets_no_answer_that_it_would_not_give(tmp_path: Path) -> None:
    """`casam ask` gives one folder of kept layers to all policies that it plays."""
    kept = {}
    noisy = {"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 0.01}}
    routed = {"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}
    training = {"epochs": 1, "batch_images": 4, "fallback_to_identity": True}
    policies: dict[str, dict[str, Any]] = {"all": {}, "none": {"finder": "never"}, "routed": routed}
    for name, policy in (policies | {"noisy": noisy}).items():
        table = tiny_table(alignment={"finder": True}, training=training)["institutions"]
        table[0]["policy"] = policy
        site = institution(
            "north", tmp_path, alignment={"finder": True}, training=training, institutions=table
        )
        start = weights_of(site.layer("polyp", None))
        reply = permission.align(site, AlignRequest(Job("north", 1, "polyp")))
        moved = any(
            not np.array_equal(value, start[key])
            for key, value in reply.layer.items()
            if key.startswith(PREFIX)
        )
        kept[name] = (moved, reply.improved is not None)
    assert kept == {
        "all": (True, True),
        "none": (False, True),
        "routed": (True, True),
        "noisy": (True, False),
    }


def test_what_a_site_learned_for_itself_is_no_private_release(tmp_path: Path) -> None:
    """It refused, so it learned the task alone and without noise; then its policy allows the same request."""
    request, layers = AlignRequest(Job("north", 1, "polyp")), {}
    policy = {"adapter": {"noise": "dp"}, "budget": {"epsilon": 1.0, "delta": 0.01}}
    for folder, allowed in (("refused", 0), ("refused", 1), ("private", 1)):
        table = tiny_table()["institutions"]
        table[0]["policy"] = {**policy, "max_rounds": allowed}
        privacy = {"steps": 2, "sampling_rate": 1.0}
        site = institution("north", tmp_path / folder, institutions=table, privacy=privacy)
        if not allowed:
            with refused(Outcome.ROUNDS_SPENT):
                permission.align(site, request)
            own = own_entries(site)["polyp"].layer
            continue
        layers[folder] = permission.align(site, request).layer
    for name, value in layers["private"].items():
        np.testing.assert_array_equal(layers["refused"][name], value)
    assert any(not np.allclose(own[name], value, atol=1e-3) for name, value in layers["private"].items())


def test_a_real_institution_keeps_nothing() -> None:
    real = cast(Any, SimpleNamespace(site=SimpleNamespace(simulated=False)))
    request = AlignRequest(Job("north", 1, "polyp"), layer=None)
    assert trained_once(real, request, lambda: REPLY) is REPLY  # no folder is looked at


def test_images_of_others_are_not_remembered() -> None:
    simulated = cast(Any, SimpleNamespace(site=SimpleNamespace(simulated=True)))
    request = AlignRequest(Job("north", 1, "polyp"), layer=None, pooled=True)
    assert trained_once(simulated, request, lambda: REPLY) is REPLY
