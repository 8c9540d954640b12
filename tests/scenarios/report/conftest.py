"""Runs and their page. Drawing the same picture again and again would be most of these tests' time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from scenarios.report.page import page
from scenarios.report.reading import read_all
from tests.scenarios.report.making import scenario_of, write_run

real = vl_convert.vegalite_to_svg


@lru_cache(maxsize=1024)
def picture(spec: str) -> str:
    """The SVG of a chart, drawn once."""
    return real(json.loads(spec))


@pytest.fixture(autouse=True, scope="session")
def drawn_once() -> Iterator[None]:
    """Pictures are drawn by Vega as always, but each only once."""

    def cached(spec: dict[str, Any]) -> str:
        return picture(json.dumps(spec))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", cached)
        yield


@pytest.fixture
def draw_anew() -> Callable[[], None]:
    """Forget what was drawn."""
    return picture.cache_clear


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their seed and in what came out."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one")
    write_run(folder / "two", scenario_of(seed=1), last_iou=0.83, noise=None)
    return folder


@pytest.fixture(scope="module")
def html(runs: Path) -> str:
    """The page of one run."""
    return page(read_all([runs / "one"]), full=True)
