"""The audit log: one hash-chained JSON line per release, at the institution and at the server.

    head_n = SHA-256 of line n as canonical JSON without its head; line n contains head_{n-1}

Changing, removing or reordering a line breaks the chain from there on. A log that was cut at its end, or
rewritten as a whole, is still consistent. Only heads that the other side kept (an anchor) reveal this.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from casam_core.errors import CasamError
from casam_core.files import HOSTED, LockedLog
from casam_core.protocol.payload import Scalar

START = "0" * 64
"""The previous head of the first line."""


class AuditError(CasamError):
    """An audit log is unreadable or its chain is broken."""

    code = "audit"


@dataclass(frozen=True)
class Release:
    """One message that an institution sent, as the institution or the server logs it.

    time: UTC, ISO 8601. request: Flower's message id. records: `name dtype shape` of every array, and names
    of numbers. bytes, digest: of the serialised content. clause: the policy key that allowed or refused it.
    epsilon: spent so far by data split; null if a release is not differentially private.
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
    """One line: a release and its place in the chain. sequence: starts at 1."""

    sequence: int
    release: Release
    previous: str
    head: str

    @property
    def place(self) -> str:
        """`SEQUENCE:HEAD`, as in replies; it always has the length of NO_PLACE."""
        return f"{self.sequence:012d}:{self.head}"


NO_PLACE = f"{0:012d}:{START}"
"""A placeholder for a place while bytes are counted."""

_PLACE = re.compile(r"(\d{12}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Anchor:
    """The part of a line that the other side keeps."""

    institution: str
    sequence: int
    head: str


def head_at(place: str, institution: str) -> Anchor | None:
    """The head in the place of a reply (Line.place); None for any other text."""
    found = _PLACE.fullmatch(place)
    return Anchor(institution, int(found[1]), found[2]) if found else None


def now() -> str:
    """The current time in UTC, in whole seconds."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def chained(sequence: int, release: Release, previous: str) -> Line:
    """The line with its head."""
    body = {"sequence": sequence, **vars(release), "previous": previous}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return Line(sequence, release, previous, hashlib.sha256(text.encode()).hexdigest())


def line_text(line: Line) -> str:
    """The line as text of the file."""
    return json.dumps(
        {"sequence": line.sequence, **vars(line.release), "previous": line.previous, "head": line.head},
        sort_keys=True,
    )


def parse_line(text: str) -> Line:
    """The inverse of line_text. Raises AuditError for an invalid line."""
    try:
        content: dict[str, Any] = json.loads(text)
        known = {field.name: content[field.name] for field in fields(Release)}
        if newer := content.keys() - known.keys() - {"sequence", "previous", "head"}:
            raise AuditError(
                f"the line holds {min(newer)!r}, which this version does not know; use the version of casam "
                "that wrote it"
            )
        known["records"] = tuple(known["records"])
        return Line(content["sequence"], Release(**known), content["previous"], content["head"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditError(f"expected a line of an audit log, found {text[:40]!r}") from error


class AuditLog(LockedLog[Line]):
    """One file of chained lines. Every reading and every append checks the chain."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, self._next)

    def add(self, release: Release, allow: Callable[[Sequence[Line]], None] = lambda lines: None) -> Line:
        """Add a line for a release. Raises AuditError if the chain is already broken.

        allow: called with the lines so far while the log is locked; if it raises, no line is added.
        """

        def make(lines: Sequence[Line]) -> tuple[Line, str]:
            allow(lines)
            line = chained(len(lines) + 1, release, lines[-1].head if lines else START)
            return line, line_text(line)

        return self.append(make)

    def _next(self, before: Sequence[Line], text: bytes) -> Line:
        try:
            line = parse_line(text.decode())
        except (UnicodeDecodeError, AuditError) as error:
            reason = error if isinstance(error, AuditError) else "expected a line of an audit log"
            raise AuditError(
                f"{self.path}: line {len(before) + 1}: {reason}; keep the file as it is and find out who "
                "changed it"
            ) from error
        if (fault := broken((line,), before)) is not None:
            raise AuditError(f"{self.path}: {fault}; keep the file as it is and find out who changed it")
        return line


@lru_cache(maxsize=HOSTED)
def audit_log(path: Path) -> AuditLog:
    """The one AuditLog of this process for a file; it remembers the lines that it has checked."""
    return AuditLog(path)


def read_log(path: Path) -> list[Line]:
    """The lines of a log without a check of its chain. Raises AuditError that names the invalid line.

    A last line without its line break is not counted: the power went while it was written, and nothing left.
    """
    try:
        texts = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{path}: expected a file audit.jsonl that can be read; check the path") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(parse_line(text))
        except AuditError as error:
            raise AuditError(f"{path}: line {number}: {error}") from error
    return lines


def broken(lines: Sequence[Line], before: Sequence[Line] = ()) -> str | None:
    """The first fault of a chain; None if it is consistent. before: the lines before it, already checked."""
    previous = before[-1].head if before else START
    for number, line in enumerate(lines, len(before) + 1):
        if line.sequence != number:
            return f"line {number} has sequence {line.sequence}: a line was removed, added or moved"
        if line.previous != previous:
            return f"line {number} does not follow line {number - 1}"
        if chained(line.sequence, line.release, line.previous).head != line.head:
            return f"line {number} was altered"
        previous = line.head
    return None


def against_anchor(lines: Sequence[Line], heads: Sequence[Anchor]) -> str | None:
    """The first head of the other side that this log lacks; None if the log has them all."""
    for seen in heads:
        if seen.sequence > len(lines):
            return f"line {seen.sequence} is missing: the log was cut after line {len(lines)}"
        if lines[seen.sequence - 1].head != seen.head:
            return f"line {seen.sequence} is not the one that was seen: the log was rewritten"
    return None


SEEN, SEEN_SIGNATURE = "seen", "seen-signature"
"""Settings of a request: the place that the server last saw in the institution's log, with its signature.

An institution that was restored from a backup has an older log and an older ledger. It would spend budget
again. Only the server's memory shows it. The signature keeps others from stopping an institution.
"""


def seen_statement(institution: str, place: str) -> dict[str, Any]:
    """What the server signs."""
    return {"role": "seen", "institution": institution, "place": place}


def without_seen(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings of the question itself, which all institutions share."""
    return {key: value for key, value in config.items() if key not in (SEEN, SEEN_SIGNATURE)}
