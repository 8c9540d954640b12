"""Entries an institution keeps to itself, and how it sees the bank with them."""

from __future__ import annotations

from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry


class KnownEntries:
    """The received bank under the institution's own entries, as both stand when this is made: for a task in
    both, its own answers.

    heads: what the entries say about themselves, in the order they were learned; tasks that only the
    institution knows come last. tasks: theirs, in this order.
    """

    def __init__(self, received: Bank, own: Bank) -> None:
        self._received = received
        self._own = own
        by_task = {head.task: head for head in received.heads()} | {head.task: head for head in own.heads()}
        self.heads, self.tasks = tuple(by_task.values()), tuple(by_task)

    def _holding(self, task: str) -> Bank:
        return self._own if task in self._own else self._received

    def digest_of(self, task: str) -> str:
        """The name of the entry that answers for this task."""
        return self._holding(task).digest_of(task)

    def __getitem__(self, task: str) -> Entry:
        return self._holding(task)[task]

    def file_of(self, task: str) -> Path:
        """Where the entry lies that answers for this task."""
        return self._holding(task).file_of(task)
