"""Shared fixtures: every test has its own stores, and scenarios that run in seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from casam_core.config.scenario import Scenario
from client.data.dataset import LoadedSample, Sample
from client.data.phantoms.painted import PhantomDataset
from tests.runs import finished_run

__all__ = ["finished_run", "phantom", "tiny_table", "with_policies"]

torch.set_num_threads(1)

# In a shell's background job, Ctrl-C is ignored, here and in every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest --hypothesis-profile=long tests/fuzz (tests/fuzz/damage.py says how many that are)
settings.register_profile("long", max_examples=1000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--kills: how often the kill tests kill; more for the long profile."""
    parser.addoption("--kills", type=int, default=5, help="Kills of a run in tests of recovery.")


ONE_PROCESS = ("casam_bench", "casam_core", "client", "disasters", "fuzz", "gpu", "whole_runs")
"""Folders whose slow tests start neither Flower nor a browser."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `pytest -n 2`: the tests of a file stay in one process, and so do all tests that start other ones.

    Those wait much and would be in each other's way, so one process has them, and the other one computes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # xdist's own groups (loadgroup) do not know pytest 9.2
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "other processes" if starts_others(file) else file

    return ByFile(config, log)


@cache
def starts_others(file: str) -> bool:
    """Whether a test of this file is slow because it starts other processes."""
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    return file.split("/")[1] not in ONE_PROCESS and ("mark.slow" in text or "needs_chromium" in text)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Embeddings of simulated institutions go to a fresh folder."""
    home = tmp_path_factory.mktemp("casam-home")
    monkeypatch.setenv("CASAM_HOME", str(home))
    return home


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """What is written stays in memory until the system stores it: half of a small run's time is this wait.

    tests/casam_core/test_files.py tests the order of writing and waiting; other processes do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def painted_once() -> Iterator[None]:
    """A small phantom is painted once in a process: painting is a third of a small run."""
    paint, pictures = PhantomDataset.load, dict[tuple[Any, ...], LoadedSample]()

    @wraps(paint)
    def load(self: PhantomDataset, sample: Sample) -> LoadedSample:
        key = (self._name, self._size, self._seed, self._institution, self._shift, self._samples, sample)
        if self._size > 64 and self._institution != "public":  # private routers compare with 72 of these
            return paint(self, sample)
        if key not in pictures:
            pictures[key] = paint(self, sample)
        return pictures[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhantomDataset, "load", load)
        yield


def phantom(name: str, images: int = 12) -> dict[str, Any]:
    """A small synthetic dataset of one modality."""
    return {"reader": "phantom", "phantom": name, "images": images, "size": 64}


def tiny_table(**changes: Any) -> dict[str, Any]:
    """A scenario table: three institutions, a shared task and an unseen one, the tiny backbone.

    Without the floor: what a few steps teach the random weights is seldom better than nothing.
    """
    table: dict[str, Any] = {
        "name": "tiny",
        "stream": ["polyp", "histology"],
        "backbone": {"name": "tiny"},
        "training": {"epochs": 1, "batch_images": 4, "keep_best": False, "fallback_to_identity": False},
        "evaluation": {"max_instances": 4},
        "institutions": [
            {"name": "north", "data": {"polyp": phantom("polyp")}},
            {
                "name": "south",
                "data": {"histology": phantom("histology"), "cardiac_mr": phantom("cardiac_mr")},
            },
            {"name": "west", "data": {"histology": phantom("histology")}},
        ],
    }
    return table | changes


def with_policies(table: dict[str, Any], **policies: dict[str, Any]) -> dict[str, Any]:
    """The table with policies for some of its institutions, by name."""
    for institution in table["institutions"]:
        institution["policy"] = policies.get(institution["name"], {})
    return table


@pytest.fixture
def tiny_scenario() -> Scenario:
    """tiny_table, validated."""
    return Scenario.model_validate(tiny_table())
