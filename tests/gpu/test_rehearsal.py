"""The script for a machine with a card, rehearsed on the processor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast
from unittest.mock import ANY

import pytest
import torch

from casam_bench.bench import Figures, Surroundings
from casam_bench.card import card_parts
from casam_bench.card.card import Card, power_of
from casam_bench.card.card_parts import PARTS

ROOT = Path(__file__).resolve().parents[2]

ON_A_CARD = {"growth_mib", "institution_peak_mib"}
"""Figures of a card's memory, 0 on a processor."""


@pytest.mark.slow
def test_the_script_leaves_figures_logs_and_the_cards_name(tmp_path: Path) -> None:
    out = tmp_path / "results"
    environment = os.environ | {"CASAM_GPU": "cpu", "PYTHON": sys.executable, "CASAM_HOME": str(tmp_path)}
    call = ["bash", str(ROOT / "tests/gpu/check.sh"), str(out)]
    subprocess.run(call, env=environment, check=True)
    figures = json.loads((out / "figures.json").read_text())["gpu"]
    assert not [name for name in figures if name.startswith("failed_")]
    assert {f"{part}_seconds" for part in PARTS} <= figures.keys()
    assert all(value > 0 for name, value in figures.items() if name not in ON_A_CARD)
    assert "torch" in (out / "card.txt").read_text()
    assert re.search(r"^\d+ passed", (out / "tests.log").read_text(), re.MULTILINE)
    assert {path.name for path in (out / "trace").iterdir()} == {"training.json.gz", "kernels.txt"}
    again = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
    assert again.count("has its figures") == len(PARTS)


def card_in(folder: Path) -> Card:
    around = Surroundings(folder, 8, 1, print, print, engines=cast(Any, None), smoke=True, parts=folder)
    return Card("cpu", True, around)


def test_a_part_that_fails_is_named_and_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def good(card: Card, known: Figures) -> Figures:
        tried.append("good")
        return {"speed": 2.0}

    def bad(card: Card, known: Figures) -> Figures:
        tried.append("bad")
        raise torch.OutOfMemoryError("CUDA out of memory\nand much more")

    monkeypatch.setenv("CASAM_GPU", "cpu")
    monkeypatch.setattr(card_parts, "PARTS", {"bad": bad, "good": good})
    around = card_in(tmp_path).around
    figures = card_parts.run(around)
    assert (figures["failed_bad"], figures["speed"]) == (1.0, 2.0)
    assert "bad FAILED: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out
    assert "in bad" in (tmp_path / "bad.error.txt").read_text()
    card_parts.run(around)
    assert tried == ["bad", "good", "bad"]  # what has its figures is not measured again


def test_a_part_that_takes_too_long_is_stopped_and_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def slow(card: Card, known: Figures) -> Figures:
        tried.append("slow")
        try:
            time.sleep(60 if len(tried) == 1 else 0)
        except Exception:  # what a part catches does not hide that its time is over
            return {"speed": 1.0}
        return {"speed": 2.0}

    def quick(card: Card, known: Figures) -> Figures:
        tried.append("quick")
        raise ValueError("always")

    monkeypatch.setenv("CASAM_GPU", "cpu")
    monkeypatch.setattr(card_parts, "PARTS", {"slow": slow, "quick": quick})
    around = card_in(tmp_path).around
    monkeypatch.setenv(card_parts.TIME, "1")
    figures = card_parts.run(around)
    assert figures == {"failed_slow": 1.0, "failed_quick": 1.0}
    said = capsys.readouterr().out
    assert "slow FAILED: TooLong: expected its end within 1 s" in said
    assert "no time was left for quick; the same call again measures it" in said
    monkeypatch.delenv(card_parts.TIME)
    assert card_parts.run(around) == {"failed_quick": 1.0, "speed": 2.0, "slow_seconds": ANY}
    assert tried == ["slow", "quick", "slow"]  # of the two, only the first had failed by itself


def test_a_part_in_which_the_process_ended_is_known(tmp_path: Path) -> None:
    def deadly(card: Card, known: Figures) -> Figures:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        card_parts.measured(card_in(tmp_path), "one", deadly, {})
    assert (tmp_path / "one.error.txt").read_text() == "the process ended within this part\n"
    assert card_parts.ended_badly(tmp_path, "one")


def test_figures_of_another_card_or_of_other_code_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_in(tmp_path)
    card_parts.measured(card, "one", lambda card, known: {"speed": 1.0}, {})
    assert card_parts.figures_in(tmp_path, "one", card) is not None
    with monkeypatch.context() as patch:
        patch.setattr(card_parts, "code_fingerprint", lambda: "other")
        assert card_parts.figures_in(tmp_path, "one", card) is None
    monkeypatch.setattr(Card, "name", "another card")
    assert card_parts.figures_in(tmp_path, "one", card) is None


def test_the_power_that_the_driver_tells_is_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "nvidia-smi"
    told.write_text("#!/bin/sh\necho 250.5\n")
    told.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(Card, "cuda", True)
    with power_of(card_in(tmp_path)) as power:
        time.sleep(1.3)
    assert power.mean == 250.5


def test_without_a_card_it_says_how_to_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from casam_bench.card.card import device_of
    from casam_core.errors import RunError

    monkeypatch.delenv("CASAM_GPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RunError, match=r"expected a CUDA device, torch .* finds none; CASAM_GPU=cpu rehearses"
    ):
        device_of()
