"""A studio over one finished tiny run with pictures, an interrupted one and an image; and a visitor of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from scenarios.studio.access import Door, Guarded
from scenarios.studio.pages import Studio, application
from scenarios.studio.shelf import Shelf
from scenarios.studio.started import Starter
from tests.conftest import tiny_table
from tests.runs import FinishedRun

PORT, TOKEN = 8700, "the-token"
HERE = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="session")
def tiny_runs(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/done (finished, with pictures), runs/broken-off (interrupted) and runs/images/image.png."""
    table = tiny_table()
    table["evaluation"]["overlays"] = 2
    folder = tmp_path_factory.mktemp("studio") / "runs"
    shutil.copytree(finished_run(table), folder / "done")
    start = '{"engine": "inprocess", "data_root": "", "ledger_dir": "", "checkpoint": ""}'
    (folder / "done" / "order.json").write_text(start)
    broken = folder / "broken-off"
    broken.mkdir()
    shutil.copy(folder / "done" / "scenario.json", broken)
    lines = (folder / "done" / "events.jsonl").read_text().splitlines(keepends=True)
    (broken / "events.jsonl").write_text("".join(lines[: len(lines) // 2]))
    (broken / "order.json").write_text(start)
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "image.png")
    return folder


@pytest.fixture
def studio(tiny_runs: Path) -> Studio:
    """The studio over the tiny runs."""
    shelf = Shelf.of([tiny_runs])
    return Studio(shelf, Starter(shelf.roots[0]))


@pytest.fixture
def stranger(studio: Studio) -> TestClient:
    """Who knows the address but has no cookie."""
    guarded = Guarded(application(studio), Door(PORT, TOKEN))
    return TestClient(guarded, base_url=HERE, follow_redirects=False)


@pytest.fixture
def visitor(stranger: TestClient) -> TestClient:
    """The person who opened the printed address; forms come from the studio's own pages."""
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    stranger.headers["origin"] = HERE
    return stranger
