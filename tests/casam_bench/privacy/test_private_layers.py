"""The benchmark of private layers: its cells, its shares, and a task on the tiny backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casam_bench.privacy.private_layers import (
    Cells,
    Task,
    frozen,
    iou_of,
    opened,
    private,
    share_along,
    standings,
    table_of,
)
from casam_core.config.scenario import PrivacySpec
from casam_core.model.examples import Example
from casam_core.model.layer_library import LIBRARIES
from tests.banks import picture, random_library, tiny_backbone


@pytest.fixture
def task() -> Task:
    labels = np.zeros((48, 64), np.int32)
    labels[10:30, 12:36] = 1
    z_BCHW = tiny_backbone().encode([picture("polyp", seed) for seed in range(10)])
    library = LIBRARIES.get(random_library("low_rank"), LIBRARIES.here)
    return Task("polyp", [Example(z_CHW, labels) for z_CHW in z_BCHW], 8, library, tiny_backbone())


def test_a_seed_draws_its_training_images_and_all_others_test(task: Task) -> None:
    train, test = task.parts(0)
    assert (len(train), len(test)) == (8, 2)
    assert {id(example) for example in (*train, *test)} == {id(example) for example in task.examples}


@pytest.mark.parametrize("method", ["dp_sgd", "public_start"])
def test_every_way_gives_a_layer_that_can_be_tested(task: Task, method: str) -> None:
    noisy = private(PrivacySpec.model_validate({"method": method, "steps": 2}), 8.0)
    for make in (frozen, opened, noisy):
        assert 0 <= iou_of(task, make(task, 0), 0) <= 1


def test_the_shares_along_all_directions_together_are_the_whole_gradient(task: Task) -> None:
    joint = task.library.joint
    width = sum(value.size for value in joint.values())

    def share(first: int, last: int) -> float:
        parts = np.split(np.eye(width)[first:last], np.cumsum([v.size for v in joint.values()])[:-1], axis=1)
        directions = {
            name: part.reshape(-1, *joint[name].shape) for name, part in zip(joint, parts, strict=True)
        }
        library = replace(task.library, directions=directions, shares_K=np.zeros(last - first))
        return share_along(replace(task, library=library), 0)

    half = width // 2
    assert 0 < share(0, half) < 1
    assert share(0, half) + share(half, width) == pytest.approx(1)


def test_a_cell_is_measured_once(task: Task, tmp_path: Path) -> None:
    asked = []

    def make(task: Task, seed: int) -> object:
        asked.append(seed)
        return frozen(task, seed)

    first = Cells(tmp_path / "cells.jsonl").measured(task, "frozen", 1, make)  # type: ignore[arg-type]
    again = Cells(tmp_path / "cells.jsonl").measured(task, "frozen", 1, make)  # type: ignore[arg-type]
    assert (first, asked) == (again, [1])


def test_shares_are_of_tasks_that_gain_in_draws_that_have_all_tasks_and_the_worst_is_of_all(
    tmp_path: Path,
) -> None:
    means = {
        "a": {"frozen": 0.5, "open": 0.7, "public_start 8": 0.6},
        "b": {"frozen": 0.5, "open": 0.9, "public_start 8": 0.8},
        "gains little": {"frozen": 0.9, "open": 0.92, "public_start 8": 0.88},
    }
    cells = Cells(tmp_path / "cells.jsonl")
    cells.known.update({(task, 24, way, 0): iou for task, row in means.items() for way, iou in row.items()})
    cells.known["a", 24, "public_start 8", 1] = 0.1  # a draw of one task
    (found,) = (s for s in standings(cells) if s.way == "public_start 8")
    assert found.shares == pytest.approx(((0.1 / 0.2 + 0.3 / 0.4) / 2,))
    assert found.worst == pytest.approx(-0.02)
    assert (found.kind, found.tasks) == ("real", 3)
    assert "| 24 | 3 real | public_start 8 | 1 | 0.760 | 62 % (62 to 62) | -2.0 |" in table_of(cells)
