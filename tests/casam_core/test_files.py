"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest

from casam_core import files
from casam_core.files import (
    LockedLog,
    append_record,
    keep_only,
    make_folder,
    read_records,
    remove,
    remove_folder,
    sha256_of_file,
    write_atomic,
    write_new,
)


def test_a_file_is_written_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["fsync", "rename"])
def test_a_crash_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("power failure")

    with monkeypatch.context() as patch:
        if fault == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="power failure"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_data_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        events.append(f"fsync {kind}")
        fsync(handle)

    def watched_rename(unfinished: Path, target: Path) -> None:
        events.append("rename")
        rename(unfinished, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_rename)
    write_atomic(tmp_path / "file", b"data")
    assert events == ["fsync file", "rename", "fsync folder"]


def test_a_written_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"data")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_is_an_error_not_a_silent_loss(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"data")


@pytest.mark.parametrize("data", [b"", b"abc", b"x" * 3_000_000])
def test_the_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()


def folders_synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose names are on the disk, in the order of their fsync."""
    synced: list[Path] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    return synced


def plain_log(path: Path) -> LockedLog[str]:
    return LockedLog(path, lambda before, text: text.decode())


def test_names_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, a power cut loses a whole new log, or brings back what was deleted."""
    synced, new = folders_synced(monkeypatch), tmp_path / "new"
    make_folder(new / "below")
    assert synced == [tmp_path, new]
    plain_log(new / "log").append(lambda lines: ("a", "a"))
    assert synced.pop() == new
    remove(new / "log")
    assert synced.pop() == new
    remove_folder(new)
    assert synced.pop() == tmp_path
    assert not new.exists()


def test_a_folder_whose_deletion_a_crash_ended_is_deleted_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "entry").touch()
    others = [tmp_path / "bank-of-others", tmp_path / ".bank.yesterday"]
    for other in others:
        other.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the crash
        remove_folder(tmp_path / "bank")
    remove_folder(tmp_path / "bank")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_the_other_files_of_a_folder_are_deleted(tmp_path: Path) -> None:
    keep_only(tmp_path / "none", {"b"})
    for name in ("a", "b", ".a.unfinished"):
        (tmp_path / name).touch()
    keep_only(tmp_path, {"b", "c"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file")


def test_a_log_that_cannot_be_looked_at_does_not_pass_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = plain_log(tmp_path / "log")
    assert log.lines() == []
    log.append(lambda before: ("first", "first"))

    def failing(path: Path) -> tuple[int, ...]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(files, "state_of", failing)
    with pytest.raises(OSError, match="Input/output error"):
        log.lines()


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, log = os.write, plain_log(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:2]))
        with pytest.raises(OSError, match="No space left"):
            append_record(tmp_path / "records", ["too", "long"])
        with pytest.raises(OSError, match="No space left"):
            log.append(lambda lines: ("long", "long"))
        with pytest.raises(OSError, match="No space left"):
            write_new(tmp_path / "order.json", b"too long")
    assert not (tmp_path / "order.json").exists()
    append_record(tmp_path / "records", 1)
    log.append(lambda lines: ("next", "next"))
    assert [record for record, _ in read_records(tmp_path / "records")] == [1]
    assert (tmp_path / "log").read_bytes() == b"next\n"


@pytest.mark.parametrize("left", ["", "1\n"])
def test_half_a_line_that_could_not_be_removed_is_gone_before_the_next(tmp_path: Path, left: str) -> None:
    records = tmp_path / "records"
    records.write_text(left + '{"time": 1, "ev')
    append_record(records, 2)
    assert records.read_text() == left + "2\n"
