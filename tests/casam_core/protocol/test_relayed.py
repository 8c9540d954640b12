"""The two halves of a relay exchange files: each question has one answer, and nothing outlives its asker."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from casam_core.protocol.payload import Payload, digest_of
from casam_core.protocol.relayed import QUESTION, Asked, PostBox, answer_to

QUESTIONED = Payload({"institution": "north", "stage": 1}, {"layer": {"w": np.arange(3, dtype=np.float32)}})
TOLD = Payload({"outcome": "ok"}, {"layer": {"w": np.ones(3, np.float32)}}, {"facts": {"images": 7.0}})


@pytest.fixture
def box(tmp_path: Path) -> PostBox:
    return PostBox(tmp_path / "box")


def asking(box: PostBox, seconds: float, found: list[Payload | None]) -> threading.Thread:
    """Somebody asks, and puts what it hears into `found`."""
    asker = threading.Thread(
        target=lambda: found.append(box.ask("train.align", QUESTIONED, "learned", seconds))
    )
    asker.start()
    return asker


def first_of(box: PostBox) -> Asked:
    """The first question that comes."""
    while not (waiting := list(box.questions())):
        pass
    return waiting[0]


def test_an_answer_is_read_once_and_leaves_nothing(box: PostBox) -> None:
    found: list[Payload | None] = []
    asker = asking(box, 30, found)
    asked = first_of(box)
    assert (asked.kind, asked.learned) == ("train.align", "learned")
    assert digest_of(asked.question) == digest_of(QUESTIONED)
    box.answer(asked, TOLD)
    asker.join()
    assert [digest_of(payload) for payload in found if payload] == [digest_of(TOLD)]
    assert list(box.folder.iterdir()) == []


def test_who_no_longer_waits_leaves_nothing_and_gets_no_late_answer(box: PostBox) -> None:
    """A late answer would be that of the next one who asks the same."""
    found: list[Payload | None] = []
    asker = asking(box, 0.3, found)
    asked = first_of(box)
    asker.join()
    assert found == [None]
    assert not asked.waits
    box.answer(asked, TOLD)
    assert list(box.folder.iterdir()) == []
    assert list(box.questions()) == []


def test_what_a_dead_asker_left_is_not_answered_and_is_cleared(box: PostBox) -> None:
    found: list[Payload | None] = []
    asker = asking(box, 0.3, found)
    left = first_of(box).file.read_bytes()
    asker.join()
    old, other = (box.folder / f"{name}{QUESTION}" for name in ("old", "other"))
    old.write_bytes(left)
    assert list(box.questions()) == []
    assert not old.exists()
    other.write_bytes(left)
    answer_to(other).write_bytes(left)
    box.clear()
    assert list(box.folder.iterdir()) == []


def test_a_file_that_is_no_question_is_removed_and_the_others_are_answered(box: PostBox) -> None:
    (box.folder / f"0{QUESTION}").write_bytes(b"no records")
    found: list[Payload | None] = []
    asker = asking(box, 30, found)
    box.answer(first_of(box), TOLD)
    asker.join()
    assert found[0] is not None
    assert list(box.folder.iterdir()) == []


def test_nobody_else_may_look_into_the_box(box: PostBox) -> None:
    assert stat.S_IMODE(box.folder.stat().st_mode) == 0o700


def test_a_file_stop_ends_the_lower_half(box: PostBox) -> None:
    assert not box.stopped
    (box.folder / "stop").touch()
    assert box.stopped
