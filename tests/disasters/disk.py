"""Machines with disks. Files lie in a real folder in memory; each disk knows what a power cut would leave.

A write is certain after fsync of its file. A name (made, renamed, removed) is certain after fsync of its
folder. At a power cut, of everything that is not certain a random part survives: names in the order in which
they were changed in a folder, data as a whole, torn, or not at all.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.disasters.clock import Clock


class PowerCutError(BaseException):
    """The machine is off. Nothing in the product may catch it."""


Change = tuple[int, str, int | None]
"""(folder, name, what it names now; None: nothing)."""

RECOVERY = 12.0
"""Seconds until somebody has made room on a disk."""

CHANGES = ("open", "write", "fsync", "ftruncate", "replace", "rename", "unlink", "mkdir", "link")
"""Calls that a full, broken or read-only disk refuses."""


@dataclass
class Failing:
    """A disk that refuses calls `first` to `last`, and recovers after a while in any case.

    until: the second of its recovery, once it refused.
    """

    code: int
    first: int
    last: int
    until: float = 0.0


@dataclass
class Machine:
    """One computer: its folder, what is certain on its disk, and what will befall it.

    calls: of the system that changed something or sent something. cut: the call at which the power goes.
    folders: certain names of each folder. data: certain bytes of each file.
    """

    name: str
    root: Path
    random: Random
    clock: Clock
    on: bool = True
    calls: int = 0
    cut: int | None = None
    cut_after: bool = False
    failing: list[Failing] = field(default_factory=list)
    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    last: dict[int, bytes] = field(default_factory=dict)
    pending: list[tuple[Change, ...]] = field(default_factory=list)
    handles: dict[int, int] = field(default_factory=dict)
    files: list[Any] = field(default_factory=list)

    def settle(self) -> None:
        """Everything that the folder holds now is certain."""
        self.folders, self.data, self.last, self.pending = {}, {}, {}, []
        for place, _, _ in os.walk(self.root):
            here = self.folders.setdefault(os.stat(place).st_ino, {})
            for entry in os.scandir(place):
                here[entry.name] = entry.inode()
                if entry.is_file():
                    self.data[entry.inode()] = Path(entry.path).read_bytes()

    def step(self, call: str) -> None:
        """Count one call; raises PowerCutError or OSError if its time has come."""
        if not self.on:
            raise PowerCutError(self.name)
        self.calls += 1
        if self.calls == self.cut and not self.cut_after:
            self.off()
        for fault in self.failing:
            if fault.first <= self.calls <= fault.last and call in CHANGES:
                fault.until = fault.until or self.clock.now + RECOVERY
                if self.clock.now < fault.until:
                    raise OSError(fault.code, os.strerror(fault.code))

    def done(self) -> None:
        """After the call."""
        if self.calls == self.cut:
            self.off()

    def off(self) -> None:
        """The power goes."""
        self.on, self.cut = False, None
        raise PowerCutError(self.name)

    def certain(self, path: Path) -> bytes:
        """What a power cut now would leave of a file at least; b"" if its name is not certain."""
        at: int | None = os.stat(self.root).st_ino
        for part in path.relative_to(self.root).parts:
            at = self.folders.get(at, {}).get(part) if at is not None else None
        return self.data.get(at, b"") if at is not None else b""

    def reboot(self) -> None:
        """After a power cut: what survived is what there is."""
        for handle in list(self.handles):
            with suppress(OSError):
                os.close(handle)
        for file in self.files:
            with suppress(OSError):
                file.close()
        self.handles, self.files = {}, []
        survived = self._survivors()
        kept = os.stat(self.root).st_ino
        for entry in list(os.scandir(self.root)):
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
        self._write(self.root, kept, survived)
        self.on, self.failing = True, []
        self.settle()

    def _survivors(self) -> dict[int, dict[str, int | bytes]]:
        """By folder, its names: other folders by number, files by content."""
        folders = {number: dict(names) for number, names in self.folders.items()}
        stopped: set[int] = set()
        for changes in self.pending:
            places = {folder for folder, _, _ in changes}
            if places & stopped or self.random.random() < 0.3:  # later changes of a folder are lost, too
                stopped |= places
                continue
            for folder, name, what in changes:
                if what is None:
                    folders.setdefault(folder, {}).pop(name, None)
                else:
                    folders.setdefault(folder, {})[name] = what
        latest = dict(self.last)
        kinds: set[int] = set()
        for place, _, names in os.walk(self.root):
            here = os.stat(place).st_ino
            kinds.add(here)
            known = self.folders.get(here, {}).keys() | {
                n for cs in self.pending for f, n, _ in cs if f == here
            }
            for name in sorted(names):
                path = Path(place, name)
                number = os.stat(path).st_ino
                latest[number] = path.read_bytes()
                if name not in known and self.random.random() < 0.5:  # written without this module
                    folders.setdefault(here, {})[name] = number
        kinds |= folders.keys()
        return {
            folder: {
                name: what if what in kinds else self._torn(self.data.get(what, b""), latest.get(what))
                for name, what in sorted(names.items())
            }
            for folder, names in folders.items()
        }

    def _torn(self, certain: bytes, latest: bytes | None) -> bytes:
        """What is left of a file."""
        if latest is None or latest == certain:
            return certain
        chance = self.random.random()
        if chance < 0.4:
            return certain
        if chance < 0.6:
            return latest
        start = len(certain) if latest.startswith(certain) else 0
        return latest[: self.random.randint(start, len(latest))]

    def _write(self, place: Path, number: int, survived: dict[int, dict[str, int | bytes]]) -> None:
        for name, what in survived.get(number, {}).items():
            path = place / name
            if isinstance(what, bytes):
                path.write_bytes(what)
            else:
                path.mkdir()
                self._write(path, what, survived)
