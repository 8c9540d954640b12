"""The bank: a folder with one content-addressed entry per learned task.

A bank is a folder:

    manifest.json            schema, and the entries in the order they were learned
    entries/<sha256>.entry   one entry (casam_core/bank/entry_file.py), named by the hash of its bytes
    frames/<sha256>.json     the public frame of the entries' router (casam_core/routing/public_frames.py)

An entry never changes after it was added. Files are written atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from casam_core.bank.entry_file import Entry, Head, digest_of, head_in, read_entry
from casam_core.errors import BankError
from casam_core.files import keep_only, make_folder, remove_folder, write_atomic

SCHEMA = 1


def bank_digest(entries: Mapping[str, str]) -> str:
    """SHA-256 of the tasks and the digests of their entries, in order."""
    return hashlib.sha256(json.dumps(list(entries.items())).encode()).hexdigest()


class Bank:
    """Entries in the order of learning, stored in `folder`."""

    def __init__(self, folder: Path, digests: dict[str, str]) -> None:
        self.folder = folder
        self._digests = digests
        self._entries: dict[str, Entry] = {}

    @staticmethod
    def open(folder: Path, *, create: bool = False) -> Bank:
        """The bank in `folder`; with `create`, a new one if there is none. Raises BankError."""
        manifest = folder / "manifest.json"
        if not manifest.exists():
            if not create:
                raise BankError(f"no bank at {folder}: expected a file manifest.json; check the path")
            make_folder(folder / "entries")
            bank = Bank(folder, {})
            bank._write_manifest({})
            return bank
        try:
            content = json.loads(manifest.read_text())
            if content["schema"] != SCHEMA:
                raise BankError(
                    f"{manifest} has schema {content['schema']}, this version reads {SCHEMA}; use the "
                    "version of casam that wrote it"
                )
            return Bank(folder, {item["task"]: item["sha256"] for item in content["entries"]})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise BankError(
                f"{manifest} is damaged ({type(error).__name__}); restore it from a copy"
            ) from error

    @property
    def frames(self) -> Path:
        """The folder of public frames; it does not exist if no entry needs one."""
        return self.folder / "frames"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order of learning."""
        return tuple(self._digests)

    @property
    def digest(self) -> str:
        """SHA-256 of the tasks and entry digests, in order; equal banks have equal digests."""
        return self.digest_over(self.tasks)

    def digest_over(self, tasks: Sequence[str]) -> str:
        """The digest of a bank that has only the entries of these tasks."""
        return bank_digest({task: self._digests[task] for task in tasks})

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, task: object) -> bool:
        return task in self._digests

    def __iter__(self) -> Iterator[Entry]:
        return (self[task] for task in self.tasks)

    def digest_of(self, task: str) -> str:
        """The digest of this task's entry, which is its name."""
        return self._digests[task]

    def bytes_of(self, task: str) -> bytes:
        """The entry's file, checked against its digest. Raises BankError."""
        if task not in self._digests:
            raise BankError(
                f"no entry for task {task!r}; the bank holds: {', '.join(self.tasks) or 'nothing'}"
            )
        return read_entry(self.file_of(task), self._digests[task], task)

    def __getitem__(self, task: str) -> Entry:
        if task not in self._entries:
            self._entries[task] = Entry.from_bytes(self.bytes_of(task))
        return self._entries[task]

    def file_of(self, task: str) -> Path:
        """The path of this task's entry."""
        return self._file(self._digests[task])

    def heads(self) -> Iterator[Head]:
        """The heads of all entries. Raises BankError.

        A process reads and checks a file only once; reading the arrays of an entry checks it again.
        """
        return (head_in(self._file(digest), digest, task) for task, digest in self._digests.items())

    def add(self, entry: Entry) -> str:
        """Add the entry of a new task and return its digest; on return it is on disk.

        Raises BankError if the task already has an entry, because entries never change.
        """
        return self.add_bytes(entry.to_bytes())

    def add_bytes(self, data: bytes) -> str:
        """Add an entry from the bytes of its file. Adding the same entry twice changes nothing.

        Raises BankError if they are no entry, or if the task has another one.
        """
        entry, digest = Entry.from_bytes(data), digest_of(data)
        if self._digests.get(entry.task) == digest:
            return digest
        if entry.task in self._digests:
            raise BankError(f"task {entry.task!r} already has another entry; entries never change")
        write_atomic(self._file(digest), data)
        digests = {**self._digests, entry.task: digest}
        self._write_manifest(digests)
        self._digests = digests  # not earlier: if writing fails, a second try must write again
        self._entries[entry.task] = entry
        return digest

    def remove(self, task: str) -> None:
        """Delete the entry of a task; the others stay unchanged. Raises BankError for an unknown task."""
        self.bytes_of(task)  # raises for an unknown task
        self._hold({name: d for name, d in self._digests.items() if name != task}, task)

    def replace(self, entry: Entry) -> str:
        """Replace the task's entry, delete the old one, and return the new digest.

        Only unlearning uses this (server/unlearning.py); otherwise entries never change.
        """
        data = entry.to_bytes()
        digest = digest_of(data)
        if digest != self.digest_of(entry.task):
            write_atomic(self._file(digest), data)
            self._hold({**self._digests, entry.task: digest}, entry.task)
        return digest

    def _hold(self, digests: dict[str, str], task: str) -> None:
        """Write the manifest before the deletion: after a crash, no entry of the manifest lacks its file."""
        self._write_manifest(digests)
        self._digests = digests
        self._entries.pop(task, None)
        self.sweep()

    def sweep(self) -> None:
        """Delete files of no entry in the bank: a crash between manifest and deletion leaves one."""
        keep_only(self.folder / "entries", {f"{digest}.entry" for digest in self._digests.values()})

    def _file(self, digest: str) -> Path:
        return self.folder / "entries" / f"{digest}.entry"

    def _write_manifest(self, digests: dict[str, str]) -> None:
        entries = [{"task": task, "sha256": digest} for task, digest in digests.items()]
        text = json.dumps({"schema": SCHEMA, "entries": entries}, indent=2)
        write_atomic(self.folder / "manifest.json", text.encode())


def updated_copy(folder: Path, known: int, entries: Sequence[bytes], digest: str) -> Bank:
    """The copy of a bank in `folder`, with its first `known` entries and new ones.

    entries: files of entries. digest: that the copy then has. Raises BankError if it would have another one;
    it is then what it was.
    """
    bank = Bank.open(folder, create=True) if known else None
    kept = {task: bank.digest_of(task) for task in bank.tasks[:known]} if bank else {}
    new = {Entry.from_bytes(data).task: digest_of(data) for data in entries}
    if len(kept | new) < len(kept) + len(entries) or bank_digest({**kept, **new}) != digest:
        raise BankError(f"{folder} keeps {tuple(kept)}, expected a bank of digest {digest}")
    if bank is None:
        remove_folder(folder)
        bank = Bank.open(folder, create=True)
    for task in bank.tasks[known:]:  # the server quarantined them after it had sent them
        bank.remove(task)
    for data in entries:
        bank.add_bytes(data)
    return bank
