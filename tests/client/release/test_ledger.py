"""A private release that could not be written down is not made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.release.ledger import Ledger, Spend

SPEND = Spend("2026-01-01T00:00:00+00:00", "run", "align", "polyp", "/data/polyp", "train", "image", 1.5)


def test_a_line_that_a_full_disk_cut_short_is_refused_and_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.reserve(SPEND, lambda spends: None)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
        with pytest.raises(OSError, match="No space left on device"):
            ledger.reserve(replace(SPEND, kind="router"), lambda spends: None)
    assert ledger.lines() == [SPEND]
    ledger.reserve(replace(SPEND, kind="metrics"), lambda spends: None)
    assert [spend.kind for spend in Ledger(ledger.path).lines()] == ["align", "metrics"]
