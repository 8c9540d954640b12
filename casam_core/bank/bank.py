"""The bank: one entry per learned task, on disk, content-addressed.

A bank is a folder:

    manifest.json            schema, and the entries in the order they were learned
    entries/<sha256>.entry   one entry (casam_core/bank/entry_file.py), named by the hash of its bytes

An entry never changes after it was added. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from casam_core.bank.entry_file import Entry, Head, digest_of, head_in, read_entry
from casam_core.errors import BankError
from casam_core.files import write_atomic

SCHEMA = 1


def bank_digest(entries: Mapping[str, str]) -> str:
    """SHA-256 over tasks and their entries' digests, in order."""
    return hashlib.sha256(json.dumps(list(entries.items())).encode()).hexdigest()


class Bank:
    """Entries in the order they were learned, kept in `folder`."""

    def __init__(self, folder: Path, digests: dict[str, str]) -> None:
        self.folder = folder
        self._digests = digests
        self._entries: dict[str, Entry] = {}

    @staticmethod
    def open(folder: Path, *, create: bool = False) -> Bank:
        """The bank in `folder`. Raises BankError if there is none (and `create` is off) or it is broken."""
        manifest = folder / "manifest.json"
        if not manifest.exists():
            if not create:
                raise BankError(f"no bank at {folder}: expected a file manifest.json; check the path")
            (folder / "entries").mkdir(parents=True, exist_ok=True)
            bank = Bank(folder, {})
            bank._write_manifest({})
            return bank
        try:
            content = json.loads(manifest.read_text())
            if content["schema"] != SCHEMA:
                raise BankError(f"{manifest} has schema {content['schema']}, this version reads {SCHEMA}")
            return Bank(folder, {item["task"]: item["sha256"] for item in content["entries"]})
        except (KeyError, TypeError, ValueError) as error:
            raise BankError(
                f"{manifest} is damaged ({type(error).__name__}); restore it from a copy"
            ) from error

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order they were learned."""
        return tuple(self._digests)

    @property
    def digest(self) -> str:
        """SHA-256 over the tasks and entry digests in order: two banks are equal iff this is."""
        return self.digest_over(self.tasks)

    def digest_over(self, tasks: Sequence[str]) -> str:
        """The digest of a bank that holds only these of its entries."""
        return bank_digest({task: self._digests[task] for task in tasks})

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, task: object) -> bool:
        return task in self._digests

    def __iter__(self) -> Iterator[Entry]:
        return (self[task] for task in self.tasks)

    def digest_of(self, task: str) -> str:
        """The name of this task's entry."""
        return self._digests[task]

    def bytes_of(self, task: str) -> bytes:
        """The entry's file, checked against its name. Raises BankError."""
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
        """Where this task's entry lies."""
        return self._file(self._digests[task])

    def heads(self) -> Iterator[Head]:
        """What every entry says about itself. A file is read and checked the first time that a process asks;
        one that was altered later is found when its arrays are read. Raises BankError."""
        return (head_in(self._file(digest), digest, task) for task, digest in self._digests.items())

    def add(self, entry: Entry) -> str:
        """Add a new task's entry; it is durable when this returns. Returns its digest.

        Raises BankError when the task has one already: entries never change.
        """
        return self.add_bytes(entry.to_bytes())

    def add_bytes(self, data: bytes) -> str:
        """Add an entry that arrived as a file. Adding the same entry twice changes nothing."""
        entry, digest = Entry.from_bytes(data), digest_of(data)
        if self._digests.get(entry.task) == digest:
            return digest
        if entry.task in self._digests:
            raise BankError(f"task {entry.task!r} already has another entry; entries never change")
        write_atomic(self._file(digest), data)
        digests = {**self._digests, entry.task: digest}
        self._write_manifest(digests)
        self._digests = digests  # only now: if writing failed, adding again must write again
        self._entries[entry.task] = entry
        return digest

    def remove(self, task: str) -> None:
        """Forget a task: its entry's file is deleted, the other entries keep every byte. BankError: no such
        task."""
        self.bytes_of(task)  # refuses a task that is not there
        digest = self.digest_of(task)
        self._hold({name: d for name, d in self._digests.items() if name != task}, task, digest)

    def replace(self, entry: Entry) -> str:
        """Put a new entry in the place of its task's old one, which is deleted. Returns its digest.

        Only for what was learned anew without somebody (server/unlearning.py); else entries never change.
        """
        data, old = entry.to_bytes(), self.digest_of(entry.task)
        digest = digest_of(data)
        if digest != old:
            write_atomic(self._file(digest), data)
            self._hold({**self._digests, entry.task: digest}, entry.task, old)
        return digest

    def _hold(self, digests: dict[str, str], task: str, gone: str) -> None:
        """Change the manifest first: a crash leaves a file that nobody names, never a name without a file."""
        self._write_manifest(digests)
        self._digests = digests
        self._entries.pop(task, None)
        self._file(gone).unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self.folder / "entries" / f"{digest}.entry"

    def _write_manifest(self, digests: dict[str, str]) -> None:
        entries = [{"task": task, "sha256": digest} for task, digest in digests.items()]
        text = json.dumps({"schema": SCHEMA, "entries": entries}, indent=2)
        write_atomic(self.folder / "manifest.json", text.encode())
