"""Atomic files, folders and log lines: after a crash, each is complete or absent.

A LockedLog is for evidence (audit logs, ledgers): a line is on disk when `append` returns, several processes
may append, and a damaged log is an error. append_record and read_records are for data that can be created
again: they ignore a damaged end.

Trusted code changes its files and folders here, through this module's `os`: tests/disasters puts a
simulated disk in its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Protocol, TypeVar

from casam_core.errors import BankError, PolicyError

T = TypeVar("T")
R = TypeVar("R", bound="IsDataclass")

HOSTED = 16_384
"""Most institutions whose open logs and data a process keeps. It serves them in turn, so with one place less
than institutions nothing would ever be found again."""


def casam_home() -> Path:
    """$CASAM_HOME, by default ~/.cache/casam."""
    return Path(os.environ.get("CASAM_HOME", "~/.cache/casam")).expanduser()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: a crash leaves the old file or the new one, never a part.

    The data are on disk before the name is (fsync of the file, rename, fsync of the folder). A new file is
    readable by its owner only.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(handle, data, path)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(unfinished)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the error of a full disk names no file
        raise
    _sync_folder(path.parent)


def _write(handle: int, data: bytes, path: Path) -> None:
    """Write all bytes at the end of the file. Raises OSError; then none of them are in it."""
    size = os.lseek(handle, 0, os.SEEK_END)
    try:
        if os.write(handle, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)  # the next line must not begin in the middle of this one
        raise


def remove(path: Path) -> None:
    """Delete a file if it exists; on return it is gone from the disk."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        _sync_folder(path.parent)


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Delete the other files in a folder, if it exists; on return they are gone from the disk."""
    for file in folder.glob("*"):
        if file.name not in names:
            remove(file)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and the missing ones above it; `mode` counts for the last. On return they are on disk.

    Nothing changes if it exists.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        os.mkdir(path, mode)
    except FileExistsError:  # another process was faster
        if not path.is_dir():
            raise
    _sync_folder(path.parent)


def sync_names(path: Path, levels: int) -> None:
    """On return, the names of a folder and of the `levels` - 1 folders above it are on disk.

    A folder that exists may have been made by a call that could not sync its name, or by a process that
    ended.
    """
    for folder in path.parents[:levels]:
        _sync_folder(folder)


def remove_folder(path: Path) -> None:
    """Delete a folder and what it holds; a crash leaves all of it or nothing under this name.

    What an earlier call left under a hidden name is deleted, too.
    """
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        _sync_folder(path.parent)
    for gone in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(gone, ignore_errors=True)


def lock_file(path: Path) -> IO[str]:
    """Take the lock on a file until it is closed or the process ends.

    Raises BlockingIOError if another process has it, and OSError if the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "a")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """The handle of a file, locked in this block; waits for the lock. Only its owner can read a new file."""
    make_folder(path.parent, 0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def write_new(path: Path, data: bytes) -> None:
    """Write a new file. Raises FileExistsError, and changes nothing, if it exists; if it does not fit on the
    disk, there is none."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write(handle, data, path)
        os.fsync(handle)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise
    finally:
        os.close(handle)
    _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. It becomes `path` when the block ends, and is deleted if the block raises.

    Raises BankError if `path` exists.
    """
    if path.exists() or path.is_symlink():
        raise BankError(f"{path} exists already; name a new folder with --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def sync(path: Path) -> None:
    """On return, the file and its name are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class LockedLog(Generic[T]):
    """Lines of one kind, appended by one process at a time.

    A file is only read again if it changed since this object last used it. Then its bytes are compared with
    those read before, and only new lines are parsed. So the cost of n lines does not grow with n^2.
    """

    def __init__(self, path: Path, parse: Callable[[Sequence[T], bytes], T]) -> None:
        """parse: (lines before, text) -> line. It raises if the text is not a valid next line."""
        self.path = path
        self._parse = parse
        self._bytes = bytearray()
        self._lines: list[T] = []
        self._state: tuple[int, ...] | None = None
        self._named = False

    def append(self, make: Callable[[Sequence[T]], tuple[T, str]]) -> T:
        """Add one line.

        Args:
            make: lines so far -> (next line, its text). The log is locked meanwhile. If it raises, no line
                is added.

        Raises:
            OSError: the disk is full; no line is added.
        """
        with locked(self.path) as handle:
            self._read(handle)
            line, text = make(self._lines)
            data = (text + "\n").encode()
            _write(handle, data, self.path)
            os.fsync(handle)
            if not self._named:  # the name of a new file is in its folder
                _sync_folder(self.path.parent)
                self._named = True
            self._bytes += data
            self._lines.append(line)
            self._state = state_of(handle)
            return line

    def lines(self) -> list[T]:
        """All lines so far. Raises what `parse` raises."""
        try:
            state = state_of(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        if state == self._state:
            return list(self._lines)
        with locked(self.path) as handle:
            return list(self._read(handle))

    def _read(self, handle: int) -> list[T]:
        if self._state == state_of(handle):
            return self._lines
        size = os.fstat(handle).st_size
        data = os.pread(handle, size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < size:  # a crash while writing: the event of this line did not happen
            os.ftruncate(handle, len(whole))
        if whole[: len(self._bytes)] != self._bytes:
            self._bytes, self._lines, self._state = bytearray(), [], None
        lines = list(self._lines)
        for text in whole[len(self._bytes) :].splitlines():
            lines.append(self._parse(lines, text))
        self._bytes, self._lines, self._state = bytearray(whole), lines, state_of(handle)
        return lines


class IsDataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


HEAD = "head"
"""Key of a line's hash in a RecordLog."""


class RecordLog(LockedLog[R]):
    """A LockedLog of dataclasses: one JSON object per line; its lists are tuples.

        head_n = SHA-256(head_{n-1} + line n as JSON without its head)

    So a changed byte, a removed or a moved line is seen; a cut at the end is not. Lines of earlier versions
    have no head. They count in the heads after them, and none may follow a line with a head.
    """

    def __init__(self, path: Path, kind: type[R], fault: str, optional: Collection[str] = ()) -> None:
        """fault: what a damaged line is not, and what follows from it. optional: keys that lines of earlier
        versions lack."""
        super().__init__(path, self._record)
        self._kind, self._fault, self._optional = kind, fault, frozenset(optional)
        self._heads: list[tuple[str, bool]] = []  # by line, its head, and whether it stands in the file

    def add(self, record: R, allow: Callable[[Sequence[R]], None] = lambda records: None) -> None:
        """Add a line; it is on disk when this returns.

        allow: gets all lines so far while the file is locked; an exception from it prevents the new line.
        Raises PolicyError for a damaged file.
        """

        def make(records: Sequence[R]) -> tuple[R, str]:
            allow(records)
            content = asdict(record)
            head = self._head_of(records, content, written=True)
            return record, json.dumps(content | {HEAD: head}, sort_keys=True)

        self.append(make)

    def _head_of(self, before: Sequence[R], content: dict[str, Any], *, written: bool) -> str:
        """The head of the line after `before`; it is remembered. Raises ValueError if it must be written."""
        del self._heads[len(before) :]  # of a line that the disk refused, or of lines that are read again
        previous, begun = self._heads[-1] if self._heads else ("", False)
        if begun and not written:
            raise ValueError("a line without a head")
        text = previous + json.dumps(content, sort_keys=True)
        self._heads.append((hashlib.sha256(text.encode()).hexdigest(), written))
        return self._heads[-1][0]

    def _record(self, before: Sequence[R], text: bytes) -> R:
        try:
            content, known = json.loads(text.decode()), {field.name for field in fields(self._kind)}
            head = content.pop(HEAD, None)
            if newer := content.keys() - known:
                raise PolicyError(
                    f"{self.path}: line {len(before) + 1} holds {min(newer)!r}, which this version does not "
                    "know; use the version of casam that wrote it"
                )
            if content.keys() | self._optional != known:
                raise ValueError("other keys")
            if head not in (None, self._head_of(before, content, written=head is not None)):
                raise ValueError("another head: this line or one before it was changed")
            return self._kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PolicyError(f"{self.path}: line {len(before) + 1} is not {self._fault}") from error


def state_of(file: Path | int) -> tuple[int, ...]:
    """Identity, size and change time of a file; a program cannot set the change time (ctime).

    Raises OSError.
    """
    found = os.stat(file)
    return (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)


def states_of(files: Iterable[Path]) -> tuple[tuple[int, ...] | None, ...]:
    """The state of each file; None if there is none that can be read."""
    states: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            states.append(state_of(file))
        except OSError:
            states.append(None)
    return tuple(states)


def append_record(path: Path, record: Any) -> None:
    """Add one line. A crash may lose it, unless `sync` is called first. If it raises, none is added.

    An incomplete last line, which a crash or a full disk left, is removed before.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
        _write(handle, (json.dumps(record) + "\n").encode(), path)
    finally:
        os.close(handle)


def read_records(path: Path) -> Iterator[tuple[Any, int]]:
    """(record, bytes of its line) up to the first damaged line; nothing if there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield record, len(line)
