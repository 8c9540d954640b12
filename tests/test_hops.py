"""Few hops: from a question to the wire, and from a request to its answer."""

from __future__ import annotations

from pathlib import Path

from tests.hops import ASKING, frames_to_the_wire


def test_from_a_question_of_the_server_to_the_wire_are_four_frames(tmp_path: Path) -> None:
    frames = frames_to_the_wire(tmp_path / "run")
    assert frames.keys() == set(ASKING)
    assert max(frames.values()) <= 4, frames
