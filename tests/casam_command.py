"""The `casam` command as a person types it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scenarios.commands.cli import main


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a refused input."""
        assert self.status == 2, self.out + self.err
        (line,) = self.err.strip().splitlines()
        assert line.startswith("error: ")
        return line


Casam = Callable[..., Finished]


@pytest.fixture
def casam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Casam:
    """The command, called in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["casam", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Finished(status, out, err)

    return call
