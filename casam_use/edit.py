"""Create new banks from existing ones; the existing banks and the entries stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.named_parts import ROUTERS
from casam_core.config.public_files import file_of
from casam_core.errors import BankError
from casam_core.files import new_folder
from casam_core.routing.public_frames import FRAMES


def write_bank(out: Path, entries: Iterable[bytes], frames: Sequence[Path] = ()) -> Bank:
    """A new bank of these entry files in this order and the public frames that they name, written atomically.

    frames: folders with public frames. Raises BankError if `out` exists, or a frame is missing or altered.
    """
    with new_folder(out) as folder:
        bank = Bank.open(folder, create=True)
        for data in entries:
            bank.add_bytes(data)
        for digest in sorted({entry.provenance.frame for entry in bank} - {""}):
            holding = next((place for place in frames if file_of(place, digest).is_file()), None)
            data = FRAMES.data(digest, holding)
            if holding is not None:
                FRAMES.keep(data, bank.frames)
    return Bank.open(out)


def without(bank: Bank, task: str, out: Path) -> Bank:
    """A new bank without the entry of `task`; the others keep their bytes and their order."""
    bank.bytes_of(task)  # raises for an unknown task
    return write_bank(out, (bank.bytes_of(other) for other in bank.tasks if other != task), [bank.frames])


def merged(banks: Mapping[str, Bank], out: Path) -> Bank:
    """A new bank of all entries, in the order of the banks and of their tasks.

    An entry that is in several banks is taken once.

    Args:
        banks: by name, for error messages.

    Raises:
        BankError: two banks have different entries of one task, or entries whose scores cannot be compared.
    """
    found: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, bank in banks.items():
        for task in bank.tasks:
            data = bank.bytes_of(task)
            if files.setdefault(task, data) != data:
                raise BankError(
                    f"{found[task]} and {name} hold different entries of task {task!r}; "
                    f"remove one first: casam bank remove {name} {task} --out NEW"
                )
            found.setdefault(task, name)
    check_alike([Entry.from_bytes(data) for data in files.values()])
    return write_bank(out, files.values(), [bank.frames for bank in banks.values()])


def check_alike(entries: Iterable[Entry]) -> None:
    """Raise BankError if scores cannot be compared: the backbone, router or router features differ."""
    first: Entry | None = None
    for entry in entries:
        first = first or entry
        want, have = _what_scores_need(first), _what_scores_need(entry)
        for name, value in want.items():
            if have.get(name, value) != value:
                raise BankError(
                    f"entries of one bank must share their {name}: task {first.task!r} has {value}, "
                    f"task {entry.task!r} has {have[name]}; keep them in separate banks"
                )


def _what_scores_need(entry: Entry) -> dict[str, object]:
    about = entry.provenance
    keys = ROUTERS.sections()[about.router].model_fields if about.router in ROUTERS else {}
    scored = [key for key in ("beta", "sampled") if key in keys]
    return {key: getattr(about, key) for key in ("backbone", "router", "features", "frame", *scored)}
