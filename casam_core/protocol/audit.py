"""The audit log: one hash-chained JSON line per release, at the institution and at the server.

    head_n = SHA-256 of line n as canonical JSON without its head, which contains head_{n-1}

Changing, removing or reordering a line breaks the chain from there on. A log that was cut at its end, or
rewritten as a whole, is consistent in itself: only heads that somebody else kept (an anchor) show it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from casam_core.errors import CasamError
from casam_core.files import append_line

START = "0" * 64
"""What the first line follows."""


class AuditError(CasamError):
    """An audit log is not what it must be."""

    code = "audit"


@dataclass(frozen=True)
class Release:
    """What left an institution, or arrived from it.

    time: UTC, ISO 8601. request: Flower's message id. records: `name dtype shape` of every array, and names
    of numbers. bytes, digest: of the serialised content. clause: of the policy, that allowed or refused.
    epsilon: spent so far by data split, null where a release is not differentially private.
    """

    time: str
    institution: str
    run: str
    request: str
    kind: str
    stage: int
    round: int
    task: str
    outcome: str
    clause: str
    records: tuple[str, ...]
    bytes: int
    digest: str
    epsilon: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Line:
    """One line: a release in its place of the chain. sequence: from 1."""

    sequence: int
    release: Release
    previous: str
    head: str

    @property
    def place(self) -> str:
        """`SEQUENCE:HEAD`, as replies carry it; always as long as NO_PLACE."""
        return f"{self.sequence:012d}:{self.head}"


NO_PLACE = f"{0:012d}:{START}"
"""Stands for a place while bytes are counted."""

_PLACE = re.compile(r"(\d{12}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Head:
    """What the other side keeps of a line: an anchor."""

    institution: str
    sequence: int
    head: str


def head_at(place: str, institution: str) -> Head | None:
    """The head that a reply named (Line.place); None for any other text."""
    found = _PLACE.fullmatch(place)
    return Head(institution, int(found[1]), found[2]) if found else None


def now() -> str:
    """The time of a release: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def chained(sequence: int, release: Release, previous: str) -> Line:
    """The line with its head."""
    body = {"sequence": sequence, **asdict(release), "previous": previous}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return Line(sequence, release, previous, hashlib.sha256(text.encode()).hexdigest())


def line_text(line: Line) -> str:
    """As it stands in the file."""
    return json.dumps(
        {"sequence": line.sequence, **asdict(line.release), "previous": line.previous, "head": line.head},
        sort_keys=True,
    )


def parse_line(text: str) -> Line:
    """The inverse of line_text. Raises AuditError for what is no line of a log."""
    try:
        content: dict[str, Any] = json.loads(text)
        known = {field.name: content[field.name] for field in fields(Release)}
        if content.keys() != known.keys() | {"sequence", "previous", "head"}:
            raise ValueError("other keys")
        known["records"] = tuple(known["records"])
        return Line(content["sequence"], Release(**known), content["previous"], content["head"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"expected a line of an audit log, found {text[:40]!r}") from error


class AuditLog:
    """Appends to one file. A line is on the disk when `append` returns.

    Several processes may append to one log, one at a time. A file that is as this object left it, to the time
    of its last change, is not read again; another is compared, byte by byte, with what was checked, and what
    came since is parsed and checked. Else a log of many lines costs its square.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = bytearray()
        self._lines: list[Line] = []
        self._left: tuple[int, ...] | None = None

    def append(self, release: Release, allow: Callable[[Sequence[Line]], None] = lambda lines: None) -> Line:
        """Add a line behind the last whole one. Raises AuditError when the chain is broken already.

        allow: shown the lines so far while nobody else can add one; what it raises keeps the line out.
        """
        with self._locked() as handle:
            lines = self._read(handle)
            allow(lines)
            previous = lines[-1].head if lines else START
            line = chained(len(lines) + 1, release, previous)
            self._checked += append_line(handle, line_text(line), self.path)
            self._lines.append(line)
            self._left = _state(handle)
        return line

    def lines(self) -> list[Line]:
        """Everything so far. Raises AuditError when the chain is broken."""
        if not self.path.exists():
            return []
        with self._locked() as handle:
            return list(self._read(handle))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _read(self, handle: int) -> list[Line]:
        if self._left == _state(handle):
            return self._lines
        size = os.fstat(handle).st_size
        data = os.pread(handle, size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < size:  # a crash while writing; what it announced never left, for it leaves after this
            os.ftruncate(handle, len(whole))
        if whole[: len(self._checked)] != self._checked:
            self._checked, self._lines = bytearray(), []
        lines = [
            *self._lines,
            *(parse_line(text) for text in whole[len(self._checked) :].decode().splitlines()),
        ]
        if (fault := broken(lines, len(self._lines))) is not None:
            raise AuditError(f"{self.path}: {fault}; keep the file as it is and find out who changed it")
        self._checked, self._lines, self._left = bytearray(whole), lines, _state(handle)
        return lines


def _state(handle: int) -> tuple[int, ...]:
    """Which file it is, how long, and when it last changed by the kernel's clock, which no file call sets."""
    found = os.fstat(handle)
    return (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def audit_log(path: Path) -> AuditLog:
    """This process's one object for a file, with what it has checked so far."""
    return AuditLog(path)


def read_log(path: Path) -> list[Line]:
    """Lines of a log to be judged, its chain unchecked. Raises AuditError naming the line that is none."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{path}: expected an audit log, it cannot be read; check the path") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(parse_line(text))
        except AuditError as error:
            raise AuditError(f"{path}: line {number}: {error}") from error
    return lines


def broken(lines: Sequence[Line], checked: int = 0) -> str | None:
    """The first thing wrong with a chain, None for a consistent one. checked: so many lines are known to be
    right."""
    previous = lines[checked - 1].head if checked else START
    for number, line in enumerate(lines[checked:], checked + 1):
        if line.sequence != number:
            return f"line {number} has sequence {line.sequence}: a line was removed, added or moved"
        if line.previous != previous:
            return f"line {number} does not follow line {number - 1}"
        if chained(line.sequence, line.release, line.previous).head != line.head:
            return f"line {number} was altered"
        previous = line.head
    return None


def against_anchor(lines: Sequence[Line], heads: Sequence[Head]) -> str | None:
    """The first head that somebody else saw and this log does not have; None when all are there."""
    for seen in heads:
        if seen.sequence > len(lines):
            return f"line {seen.sequence} is missing: the log was cut after line {len(lines)}"
        if lines[seen.sequence - 1].head != seen.head:
            return f"line {seen.sequence} is not the one that was seen: the log was rewritten"
    return None


def differences(left: Sequence[Release], arrived: Sequence[Release]) -> list[str]:
    """What one side logged and the other did not, by request; one line each."""
    sent = {release.request: release for release in left}
    got = {release.request: release for release in arrived}
    found = []
    for request, release in sent.items():
        what = f"{release.kind} of stage {release.stage} ({release.digest[:12]}, {release.bytes} bytes)"
        if request not in got:
            found.append(f"left and never arrived: {what}")
        elif (got[request].digest, got[request].bytes) != (release.digest, release.bytes):
            found.append(f"arrived as {got[request].digest[:12]}, {got[request].bytes} bytes: {what}")
    for request, release in got.items():
        if request not in sent:
            found.append(f"arrived and never left: {release.kind} of stage {release.stage}")
    return found
