"""Examples in docstrings are true. The package's own needs a bank: tests/casam_use/test_segmenter.py
runs it."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import casam_core

ROOM = Path(casam_core.__path__[0])


def with_examples() -> list[str]:
    """Modules below casam_core that show any."""
    return [
        ".".join(path.relative_to(ROOM.parent).with_suffix("").parts)
        for path in sorted(ROOM.rglob("*.py"))
        if path != ROOM / "__init__.py" and ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", with_examples())
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert "casam_core.routing.decision" in with_examples()
