"""Few hops: from a question to the wire, from a request to its answer, from a box to the decoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `python -m tests.hops` measures, in a process of its own."""
    file = tmp_path_factory.mktemp("hops") / "hops.json"
    command = [sys.executable, "-m", "tests.hops", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_from_a_question_of_the_server_to_the_wire_are_few_frames(hops: dict[str, Any]) -> None:
    """Four is the aim. A secure sum passes Flower's own workflow; to unlearn a task is to learn it again."""
    wire = {what: max(asked.values()) for what, asked in hops["wire"].items()}
    limits = {"open": 4, "summed": 9, "unlearned": 7}
    assert [what for what, most in limits.items() if wire[what] > most] == []
    assert hops["wire"]["open"].keys() == {"learn_layer", "learn_router", "evaluate"}
    assert hops["wire"]["unlearned"]["unlearn"] > 4, "no task was learned again"


def test_a_request_walks_through_no_more_of_the_house_than_before(hops: dict[str, Any]) -> None:
    """Files of casam_core and client, with the checks of the boundary; the aims of docs/log.md are 30, 25."""
    assert hops["requests"]["evaluate.stage"][0] <= 53
    assert hops["requests"]["train.align"][0] <= 51


def test_from_a_box_to_the_decoder_are_few_frames(hops: dict[str, Any]) -> None:
    """Five is the aim; three of the eight serve a second try in halves, where memory is short."""
    assert hops["decoder"] <= 8
