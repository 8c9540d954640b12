"""Files of JSON lines: one kind that evidence is made of, and one for everything else.

LockedLog: audit logs and ledgers. A line is on the disk when `append` returns, several processes may append,
and what is damaged is refused. append_record, read_records: what can be made again; a damaged end is ignored.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LockedLog(Generic[T]):
    """Lines of one kind, appended by one process at a time.

    A file that is as this object left it, to the time of its last change, is not read again. Another is
    compared, byte by byte, with what was read, and only what came since is parsed. Otherwise a log of many
    lines would cost its square.
    """

    def __init__(self, path: Path, parse: Callable[[Sequence[T], bytes], T]) -> None:
        """parse: (lines before, text) -> line. It raises for what is not the next line of such a log."""
        self.path = path
        self._parse = parse
        self._bytes = b""
        self._lines: list[T] = []
        self._state: tuple[int, ...] | None = None

    def append(self, make: Callable[[Sequence[T]], tuple[T, str]]) -> T:
        """Add one line.

        Args:
            make: given the lines so far while nobody else can add one, it returns the next and its
                text. What it raises keeps the line out.

        Raises: OSError where the disk has no room for all of it. What may stand there then ends in no line
            break, and the next reader cuts it off.
        """
        with self._locked() as handle:
            self._read(handle)
            line, text = make(self._lines)
            data = (text + "\n").encode()
            os.lseek(handle, 0, os.SEEK_END)
            if os.write(handle, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(handle)
            self._bytes += data
            self._lines.append(line)
            self._state = _state(handle)
            return line

    def lines(self) -> list[T]:
        """Everything so far. Raises what `parse` raises."""
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

    def _read(self, handle: int) -> list[T]:
        if self._state == _state(handle):
            return self._lines
        size = os.fstat(handle).st_size
        data = os.pread(handle, size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < size:  # a crash while writing: what the line announces never happened
            os.ftruncate(handle, len(whole))
        if not whole.startswith(self._bytes):
            self._bytes, self._lines = b"", []
        lines = list(self._lines)
        for text in whole[len(self._bytes) :].splitlines():
            lines.append(self._parse(lines, text))
        self._bytes, self._lines, self._state = whole, lines, _state(handle)
        return lines


def _state(handle: int) -> tuple[int, ...]:
    """Which file it is, how long, and when it last changed by the kernel's clock, which no file call sets."""
    found = os.fstat(handle)
    return (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)


def append_record(path: Path, record: Any) -> None:
    """Add one line; it may be lost in a crash."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> Iterator[tuple[Any, int]]:
    """(record, bytes of its line) up to the first line that is damaged; nothing where no file is."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield record, len(line)
