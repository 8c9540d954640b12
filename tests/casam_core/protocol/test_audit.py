"""The audit log: heads by hand, tampering found, crashes survived."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import casam_core.protocol.audit
from casam_core.protocol.audit import (
    START,
    Anchor,
    AuditError,
    AuditLog,
    Line,
    Release,
    against_anchor,
    broken,
    chained,
    line_text,
    parse_line,
    read_log,
)
from scenarios.inspection.verify import differences

TICK = 0.02
"""A change within the same tick of the kernel's clock, of the same length, is not seen at once."""

RELEASE = Release(
    time="2026-01-02T03:04:05+00:00",
    institution="north",
    run="first",
    request="id-1",
    kind="train.align",
    stage=1,
    round=1,
    task="polyp",
    outcome="ok",
    clause="adapter.share = yes",
    records=("layer/scale_C float32 (256,)",),
    bytes=1234,
    digest="ab" * 32,
    epsilon={"train": 1.5},
)


def chain(length: int, kind: str = "train.align") -> list[Line]:
    lines: list[Line] = []
    for number in range(1, length + 1):
        release = replace(RELEASE, request=f"id-{number}", kind=kind)
        lines.append(chained(number, release, lines[-1].head if lines else START))
    return lines


def heads(lines: list[Line]) -> list[Anchor]:
    return [Anchor("north", line.sequence, line.head) for line in lines]


def test_a_head_by_hand() -> None:
    line = chained(1, RELEASE, START)
    written = json.loads(line_text(line))
    del written["head"]
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert '"previous":"' + "0" * 64 + '"' in canonical
    assert line.head == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_line_is_read_as_it_was_written() -> None:
    line = chained(7, RELEASE, "c" * 64)
    assert parse_line(line_text(line)) == line


def test_what_was_appended_is_there_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "private" / "audit.jsonl"
    for number in (1, 2, 3):
        assert AuditLog(path).add(replace(RELEASE, request=f"id-{number}")).sequence == number
    assert read_log(path) == chain(3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_torn_by_a_crash_is_cut_off_and_the_chain_goes_on(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(RELEASE)
    with log.path.open("a") as file:
        file.write('{"sequence": 2, "rel')
    assert log.add(replace(RELEASE, request="id-2")).sequence == 2
    assert broken(read_log(log.path)) is None


def test_a_line_that_a_full_disk_cut_short_is_refused_and_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(RELEASE)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:100]))
        with pytest.raises(OSError, match="No space left on device"):
            log.add(replace(RELEASE, request="id-2"))
    assert [line.sequence for line in log.lines()] == [1]
    assert log.add(replace(RELEASE, request="id-3")).sequence == 2
    assert [line.release.request for line in AuditLog(log.path).lines()] == [RELEASE.request, "id-3"]


def test_nothing_is_added_to_a_broken_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(RELEASE)
    time.sleep(TICK)
    log.path.write_text(log.path.read_text().replace("polyp", "liver"))
    before = log.path.read_bytes()
    with pytest.raises(AuditError, match="line 1 was altered; keep the file"):
        log.add(RELEASE)
    assert log.path.read_bytes() == before


def test_a_log_that_was_checked_once_is_still_compared(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(3):
        log.add(RELEASE)
    other = AuditLog(log.path)
    other.add(RELEASE)  # what another process adds is read, and followed
    assert log.add(RELEASE).sequence == 5
    text = log.path.read_text()
    time.sleep(TICK)
    log.path.write_text(text.replace(f'"task": "{RELEASE.task}"', '"task": "other"', 1))
    with pytest.raises(AuditError, match="line 1 was altered"):
        log.add(RELEASE)
    log.path.write_text(text)
    assert log.add(RELEASE).sequence == 6
    log.path.unlink()
    assert log.add(RELEASE).sequence == 1


def test_only_what_came_since_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counting(text: str) -> Line:
        parsed.append(text)
        return parse_line(text)

    monkeypatch.setattr(casam_core.protocol.audit, "parse_line", counting)
    log = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(10):
        log.add(RELEASE)
    assert parsed == []  # it wrote them all itself
    other = AuditLog(log.path)
    assert other.add(RELEASE).sequence == 11
    assert len(parsed) == 10
    assert log.add(RELEASE).sequence == 12
    assert len(parsed) == 11  # the other one's line
    assert [line.sequence for line in log.lines()] == list(range(1, 13))


def test_several_writers_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: AuditLog(path).add(replace(RELEASE, request=str(i))), range(24)))
    lines = read_log(path)
    assert broken(lines) is None
    assert {line.release.request for line in lines} == {str(i) for i in range(24)}


@given(st.data())
def test_any_changed_character_is_found(data: st.DataObject) -> None:
    texts = [line_text(line) for line in chain(3)]
    row = data.draw(st.integers(0, 2))
    column = data.draw(st.integers(0, len(texts[row]) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != texts[row][column]))
    texts[row] = texts[row][:column] + other + texts[row][column + 1 :]
    try:
        lines = [parse_line(text) for text in texts]
    except AuditError:
        return
    # Only what JSON does not distinguish may stay unseen: then the content is the same.
    assert broken(lines) is not None or lines == chain(3)


@given(st.integers(2, 6), st.data())
def test_a_removed_or_moved_line_is_found(length: int, data: st.DataObject) -> None:
    lines = chain(length)
    at = data.draw(st.integers(0, length - 2))
    assert broken(lines[:at] + lines[at + 1 :]) is not None
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert broken(lines) is not None


def test_a_cut_end_shows_only_against_an_anchor() -> None:
    lines = chain(4)
    assert broken(lines[:3]) is None
    assert against_anchor(lines, heads(lines)) is None
    assert against_anchor(lines[:3], heads(lines)) == "line 4 is missing: the log was cut after line 3"


def test_a_rewritten_log_shows_only_against_an_anchor() -> None:
    lines, forged = chain(3), chain(3, kind="evaluate.stage")
    assert broken(forged) is None
    found = against_anchor(forged, heads(lines)[1:])
    assert found == "line 2 is not the one that was seen: the log was rewritten"


def test_both_sides_are_compared_by_request() -> None:
    one, two = replace(RELEASE, request="1"), replace(RELEASE, request="2")
    assert differences([one, two], [two, one]) == []
    assert differences([one], []) == [
        "left and never arrived: train.align of stage 1 (abababababab, 1234 bytes)"
    ]
    assert differences([], [one]) == [
        "arrived and never left: train.align of stage 1 (abababababab, 1234 bytes)"
    ]
    (found,) = differences([one], [replace(one, digest="cd" * 32)])
    assert found.startswith("arrived as cdcdcdcdcdcd, 1234 bytes: train.align")


def test_every_line_of_a_request_counts() -> None:
    """A release that was sent twice, or a second one under the number of the first, is no equal log."""
    one, more = replace(RELEASE, request="1"), replace(RELEASE, request="1", digest="cd" * 32)
    assert differences([one, one], [one]) == [
        "left once more than it arrived: train.align of stage 1 (abababababab, 1234 bytes)"
    ]
    assert differences([one], [one, one]) == [
        "arrived once more than it left: train.align of stage 1 (abababababab, 1234 bytes)"
    ]
    assert differences([one, more], [more]) == [
        "left once more than it arrived: train.align of stage 1 (abababababab, 1234 bytes)"
    ]
    assert differences([one, more], [more, one]) == []


def test_what_is_no_log_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(line_text(chain(1)[0]) + "\n{}\n")
    with pytest.raises(AuditError, match=r"line 2: expected a line of an audit log, found '\{\}'"):
        read_log(tmp_path / "log")
    with pytest.raises(AuditError, match="check the path"):
        read_log(tmp_path / "absent")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16") + b"\n",
        lambda data: data + b"[" * 100_000 + b"\n",
        lambda data: data + b"\xff\n",
    ],
    ids=["byte order mark", "UTF-16", "deep nesting", "no UTF-8"],
)
def test_bytes_that_no_log_wrote_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(RELEASE)
    log.path.write_bytes(damage(log.path.read_bytes()))
    with pytest.raises(AuditError):
        AuditLog(log.path).lines()


def test_a_log_that_was_swapped_and_put_back_is_read_again(tmp_path: Path) -> None:
    """Else an empty memory of it would count as the whole log, and the next line would break the chain."""
    log = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(3):
        log.add(RELEASE)
    log.path.rename(tmp_path / "kept")
    log.path.write_bytes(b"another file\n")
    with pytest.raises(AuditError):
        log.lines()
    (tmp_path / "kept").replace(log.path)
    assert len(log.lines()) == 3
    assert log.add(RELEASE).sequence == 4
