"""Drawing the same picture again and again would be most of these tests' time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import vl_convert

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
