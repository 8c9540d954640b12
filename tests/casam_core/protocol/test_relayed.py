"""The two halves of a relay exchange files: each question is answered once, and found again after a crash."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from casam_core.protocol.payload import Payload, digest_of
from casam_core.protocol.relayed import ANSWER, QUESTION, PostBox

ASKED = Payload({"institution": "north", "stage": 1}, {"layer": {"w": np.arange(3, dtype=np.float32)}})
TOLD = Payload({"outcome": "ok"}, {"layer": {"w": np.ones(3, np.float32)}}, {"facts": {"images": 7.0}})


@pytest.fixture
def box(tmp_path: Path) -> PostBox:
    return PostBox(tmp_path / "box")


def files(box: PostBox) -> list[str]:
    return sorted(path.name for path in box.folder.iterdir())


def test_an_answer_is_read_once_and_leaves_nothing(box: PostBox) -> None:
    assert box.ask("train.align", ASKED, seconds=0) is None
    ((asked, kind, question),) = box.questions()
    assert (kind, digest_of(question)) == ("train.align", digest_of(ASKED))
    box.answer(asked, TOLD)
    assert list(box.questions()) == []
    found = box.ask("train.align", ASKED, seconds=0)
    assert found is not None
    assert digest_of(found) == digest_of(TOLD)
    assert files(box) == []


def test_who_asks_again_after_a_crash_finds_the_question_or_its_answer(box: PostBox) -> None:
    box.ask("train.align", ASKED, seconds=0)
    assert PostBox(box.folder).ask("train.align", ASKED, seconds=0) is None
    assert [name.rpartition(".")[2] for name in files(box)] == [QUESTION.strip(".")]
    ((asked, _, _),) = box.questions()
    box.answer(asked, TOLD)
    asked.unlink()  # the crash came after the first of two deletions
    assert [Path(name).suffix for name in files(box)] == [ANSWER]
    assert PostBox(box.folder).ask("train.align", ASKED, seconds=0) is not None


def test_the_same_content_as_another_kind_is_another_question(box: PostBox) -> None:
    for kind in ("train.router", "train.calibrate"):
        box.ask(kind, ASKED, seconds=0)
    assert sorted(kind for _, kind, _ in box.questions()) == ["train.calibrate", "train.router"]


def test_nobody_else_may_look_into_the_box(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    box = PostBox(tmp_path / "open")
    assert stat.S_IMODE(box.folder.stat().st_mode) == 0o700


def test_a_file_stop_ends_the_lower_half(box: PostBox) -> None:
    assert not box.stopped
    (box.folder / "stop").touch()
    assert box.stopped
