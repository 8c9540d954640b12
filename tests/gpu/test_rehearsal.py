"""The script for a machine with a card, rehearsed on the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_script_leaves_figures_logs_and_the_cards_name(tmp_path: Path) -> None:
    out = tmp_path / "results"
    environment = os.environ | {"CASAM_GPU": "cpu", "PYTHON": sys.executable, "CASAM_HOME": str(tmp_path)}
    subprocess.run(["bash", str(ROOT / "tests/gpu/check.sh"), str(out)], env=environment, check=True)
    figures = json.loads((out / "figures.json").read_text())["gpu"]
    assert all(value > 0 for name, value in figures.items() if name != "growth_mib")
    assert "torch" in (out / "card.txt").read_text()
    assert "11 passed" in (out / "tests.log").read_text()


def test_without_a_card_it_says_how_to_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from casam_bench.speed.gpu import device_of
    from casam_core.errors import RunError

    monkeypatch.delenv("CASAM_GPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RunError, match=r"expected a CUDA device, torch .* finds none; CASAM_GPU=cpu rehearses"
    ):
        device_of()
