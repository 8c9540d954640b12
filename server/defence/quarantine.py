"""The quarantine: entries that are kept and reported, but in no bank until a person admits them.

quarantine/manifest.json            per quarantined entry: task, stage, reasons, whether it was admitted
quarantine/entries/<sha256>.entry   the entry, as it would be in the bank
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry, digest_of
from casam_core.errors import BankError
from casam_core.files import keep_only, make_folder, write_atomic
from server.defence.admission import fault_of
from server.evaluation import StageScores
from server.federation.federation import Federation
from server.run.run_folder import RunFolder, append_event


@dataclass(frozen=True)
class HeldBack:
    """One quarantined entry. entry: its digest. reasons: one line each. admitted: later, by a person."""

    task: str
    stage: int
    entry: str
    reasons: tuple[str, ...]
    admitted: bool = False


class Quarantine:
    """A run's quarantined entries, in `folder`."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "quarantine"

    def held_back(self) -> list[HeldBack]:
        """All entries that were ever quarantined, by stage. Raises BankError for a damaged manifest."""
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            return []
        try:
            content = json.loads(manifest.read_text())
            return [HeldBack(**{**item, "reasons": tuple(item["reasons"])}) for item in content]
        except (KeyError, TypeError, ValueError) as error:
            raise BankError(
                f"{manifest} is damaged ({type(error).__name__}); restore it from a copy"
            ) from error

    def keep(self, entry: Entry, stage: int, reasons: tuple[str, ...]) -> str:
        """Keep an entry here and return its digest. A repeated stage replaces its earlier entry."""
        data = entry.to_bytes()
        digest = digest_of(data)
        self.drop(lambda item: item.task == entry.task)
        make_folder(self._path(digest).parent)
        write_atomic(self._path(digest), data)
        self._write([*self.held_back(), HeldBack(entry.task, stage, digest, reasons)])
        return digest

    def drop(self, gone: Callable[[HeldBack], bool]) -> None:
        """Delete quarantined entries, and files that a crash left of earlier ones."""
        items = self.held_back()
        kept = [item for item in items if not gone(item)]
        if kept != items:
            self._write(kept)
        keep_only(self.folder / "entries", {self._path(item.entry).name for item in kept})

    def bytes_of(self, item: HeldBack) -> bytes:
        """The entry's file, checked against its name. Raises BankError."""
        path = self._path(item.entry)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BankError(f"{path} cannot be read ({error.strerror}); restore it from a copy") from error
        if digest_of(data) != item.entry:
            raise BankError(f"{path} was altered; restore it from a copy")
        return data

    def admit(self, task: str, bank: Bank) -> HeldBack:
        """Add the task's quarantined entry to `bank`. Raises BankError if there is none."""
        items = self.held_back()
        found = [item for item in items if item.task == task and not item.admitted]
        if not found:
            held = ", ".join(item.task for item in items) or "nothing"
            raise BankError(f"{self.folder} holds no entry of task {task!r}; held back: {held}")
        bank.add_bytes(self.bytes_of(found[0]))
        admitted = replace(found[0], admitted=True)
        self._write([admitted if item.task == task else item for item in items])
        return admitted

    def _path(self, digest: str) -> Path:
        return self.folder / "entries" / f"{digest}.entry"

    def _write(self, items: list[HeldBack]) -> None:
        text = json.dumps([asdict(item) for item in items], indent=2)
        write_atomic(self.folder / "manifest.json", text.encode())


def admit(folder: RunFolder, bank: Bank, entry: Entry, stage: int) -> bool:
    """Add an entry to the bank, or quarantine it if it is a copy. Returns whether it was added.

    Every entry passes here: a new one, and one that was learned again and takes the place of the old one. The
    next evaluation asks the canaries about it (quarantine_by_canary).
    """
    fault = fault_of(entry, bank)
    if fault is not None:
        if entry.task in bank:
            bank.remove(entry.task)
        quarantine(folder, entry, stage, fault)
        return False
    digest = bank.replace(entry) if entry.task in bank else bank.add(entry)
    # A repeated stage may have quarantined it before.
    Quarantine(folder.path).drop(lambda item: item.task == entry.task)
    folder.event("entry", stage=stage, task=entry.task, entry=digest, threshold=entry.threshold)
    return True


def quarantine_by_canary(
    federation: Federation, bank: Bank, tasks: Sequence[str], stage: int, scores: StageScores
) -> bool:
    """Quarantine the stage's new entries if any canary fails, and record all answers. They leave the bank
    when the state on disk says so (server.stage.evaluate_stage).

    An answer is one bit about all new entries together, so none of them is let in on a doubt: a person can
    admit those that are innocent. Only answers of institutions count that hold a task whose images no new
    entry may claim.

    tasks: of the new entries.
    """
    if not tasks:
        return False
    folder = federation.folder
    said = {
        name: fails
        for name, fails in scores.canary.items()
        if any(set(tasks) - {held} for held in federation.members[name].holdings if held in bank)
    }
    failed = [name for name, fails in said.items() if fails]
    folder.event(
        "canary",
        stage=stage,
        tasks=list(tasks),
        passed=[name for name, fails in said.items() if fails is False],
        failed=failed,
        unsaid=[name for name, fails in said.items() if fails is None],
    )
    if not failed:
        return False
    claims = "it claims" if len(tasks) == 1 else f"one of {', '.join(tasks)} claims"
    for task in tasks:
        quarantine(folder, bank[task], stage, f"{claims} images of other tasks, {', '.join(failed)} says")
    return True


def admit_by_hand(run: Path, task: str) -> HeldBack:
    """Add a quarantined entry of a finished run to its bank, as an event records.

    Raises BankError if the run is not finished, because its server would remove the entry again, or if the
    task has no quarantined entry.
    """
    if not (run / "summary.json").exists():
        raise BankError(f"{run}: expected the folder of a finished run; let it end before admitting an entry")
    admitted = Quarantine(run).admit(task, Bank.open(run / "bank"))
    append_event(
        run, "admitted", task=task, stage=admitted.stage, entry=admitted.entry, reasons=list(admitted.reasons)
    )
    return admitted


def quarantine(folder: RunFolder, entry: Entry, stage: int, reason: str) -> None:
    """Put an entry into quarantine, with one event."""
    digest = Quarantine(folder.path).keep(entry, stage, (reason,))
    folder.event(
        "quarantined",
        f"stage {stage} {entry.task}: the entry is held back: {reason} (`casam bank admit` lets it in)",
        stage=stage,
        task=entry.task,
        entry=digest,
        reason=reason,
    )
