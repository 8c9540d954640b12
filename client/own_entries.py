"""Entries an institution keeps to itself, and how it sees the bank with them."""

from __future__ import annotations

from functools import cached_property

from casam_core.bank import Bank
from casam_core.entry_file import Entry, Head


class KnownEntries:
    """The received bank under the institution's own entries, as both stand now: for a task in both, its own
    answers."""

    def __init__(self, received: Bank, own: Bank) -> None:
        self._received = received
        self._own = own

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order they were learned; tasks that only the institution knows come last."""
        return tuple(dict.fromkeys([*self._received.tasks, *self._own.tasks]))

    def _holding(self, task: str) -> Bank:
        return self._own if task in self._own else self._received

    def digest_of(self, task: str) -> str:
        """The name of the entry that answers for this task."""
        return self._holding(task).digest_of(task)

    def __getitem__(self, task: str) -> Entry:
        return self._holding(task)[task]

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """What the entries say about themselves, in the order of `tasks`, when this was first asked."""
        own = {head.task: head for head in self._own.heads()}
        received = {head.task: head for head in self._received.heads()}
        return tuple((received | own).values())
