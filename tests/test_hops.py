"""Few hops: from a question to the wire, and from a request to its answer."""

from __future__ import annotations

from pathlib import Path

from tests.hops import ASKING, frames_to_the_wire, walks


def test_from_a_question_of_the_server_to_the_wire_are_four_frames(tmp_path: Path) -> None:
    frames = frames_to_the_wire(tmp_path / "run")
    assert frames.keys() == set(ASKING)
    assert max(frames.values()) <= 4, frames


def test_a_request_walks_through_no_more_of_the_house_than_before(tmp_path: Path) -> None:
    """Files of casam_core and client, with the checks of the boundary; the aims of docs/log.md are 30, 25."""
    found = walks(tmp_path / "run")
    assert len(found["evaluate.stage"].files) <= 49
    assert len(found["train.align"].files) <= 47
