"""The privacy ledger: every private release this site ever began, a JSON line each, never reset by software.

A line is on the disk before anything is computed for it (`reserve`), so a crash can only count too much.
Lines are never changed or taken away; an old copy that somebody puts back is noticed by the audit log, which
names the number of lines with every release (client/dp/paid_release.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath

from casam_core.errors import PolicyError
from casam_core.files import append_line
from casam_core.privacy.accounting import Mechanism


@dataclass(frozen=True)
class Spend:
    """One private release. dataset: where its images lie, however a scenario calls the task. split: train,
    val or test. unit: image or group. The rest is the mechanism (casam_core.privacy.accounting)."""

    time: str
    run: str
    kind: str
    task: str
    dataset: str
    split: str
    unit: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    @property
    def mechanism(self) -> Mechanism:
        """What it costs."""
        return Mechanism(self.noise_multiplier, self.sample_rate, self.steps)


class Ledger:
    """One file. Several processes may reserve, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def reserve(self, spend: Spend, allow: Callable[[Sequence[Spend]], None]) -> None:
        """Add a line; it is on the disk when this returns.

        allow: shown all lines so far while nobody else can add one; what it raises keeps the line out.
        Raises PolicyError for a file that is no ledger.
        """
        with self._locked() as handle:
            allow(self._read(handle))
            append_line(handle, json.dumps(asdict(spend), sort_keys=True), self.path)

    def spends(self) -> list[Spend]:
        """All lines. Raises PolicyError for a file that is no ledger."""
        if not self.path.exists():
            return []
        with self._locked() as handle:
            return self._read(handle)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _read(self, handle: int) -> list[Spend]:
        size = os.fstat(handle).st_size
        whole, _, torn = os.pread(handle, size, 0).rpartition(b"\n")
        if torn:  # a crash while writing: nothing was computed for it yet
            os.ftruncate(handle, size - len(torn))
        return [self._parsed(number, text) for number, text in enumerate(whole.splitlines(), 1)]

    def _parsed(self, number: int, text: bytes) -> Spend:
        try:
            content = json.loads(text)
            if content.keys() != {field.name for field in fields(Spend)}:
                raise ValueError("other keys")
            return Spend(**content)
        except (ValueError, TypeError, AttributeError) as error:
            raise PolicyError(
                f"{self.path}: line {number} is no line of a ledger; nothing private leaves until the file "
                "is mended from a copy that is not older"
            ) from error


def of_dataset(spends: Sequence[Spend], dataset: str, split: str) -> list[Spend]:
    """What was spent on these images: folders that lie in one another are the same images."""
    return [s for s in spends if s.split == split and overlap(s.dataset, dataset)]


def overlap(one: str, other: str) -> bool:
    """Whether one path is the other or lies below it."""
    a, b = PurePath(one).parts, PurePath(other).parts
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]
