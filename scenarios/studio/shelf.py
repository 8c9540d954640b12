"""The folders that the studio was given: runs, studies, banks, scenario files and images in them.

A page names a thing by the folder's number and the path below it (`0/quickstart-a`). A path that leads
outside, also through a link, is not found.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casam_core.errors import CasamError, RunInputError
from casam_use.run_bank import bank_of_run

DEPTH = 3
"""How deep below a given folder runs and images are looked for."""

MOST_RUNS, MOST_IMAGES = 300, 600
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})


class NotFoundError(CasamError):
    """No such thing in the given folders."""


@dataclass(frozen=True)
class Item:
    """Something on the shelf. at: its name in addresses. path: resolved, inside a given folder."""

    at: str
    path: Path

    @property
    def name(self) -> str:
        """The path below its folder, or the folder's own name."""
        return self.at.partition("/")[2] or self.path.name


@dataclass(frozen=True)
class RunItem(Item):
    """A run folder."""

    @property
    def finished(self) -> bool:
        """Whether its figures are there."""
        return (self.path / "summary.json").is_file()

    @property
    def bank(self) -> Path | None:
        """Its bank, once there is one."""
        folder = bank_of_run(self.path)
        return folder if (folder / "manifest.json").is_file() else None

    @property
    def resumable(self) -> bool:
        """Whether `casam run --resume` can continue it: it was begun, is not finished, and nobody writes."""
        begun = all((self.path / name).is_file() for name in ("order.json", "scenario.json"))
        return begun and not self.finished and not written_to(self.path)

    @property
    def changed(self) -> float:
        """When it last wrote an event, in seconds since 1970."""
        for name in ("events.jsonl", "scenario.json"):
            if (self.path / name).is_file():
                return (self.path / name).stat().st_mtime
        return 0.0


def written_to(run: Path) -> bool:
    """Whether a server holds the run's lock at this moment."""
    try:
        with (run / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Shelf:
    """roots: the given folders, resolved."""

    roots: tuple[Path, ...]

    @staticmethod
    def of(folders: list[Path]) -> Shelf:
        """The shelf of these folders. Raises RunInputError if one is not a folder."""
        resolved = [folder.expanduser().resolve() for folder in folders]
        for folder in resolved:
            if not folder.is_dir():
                raise RunInputError(f"{folder}: expected a folder, found none; check the path")
        return Shelf(tuple(dict.fromkeys(resolved)))

    def find(self, at: str) -> Path:
        """The file or folder with this name. Raises NotFoundError, also for a path that leads outside."""
        number, _, below = at.partition("/")
        if number.isascii() and number.isdigit() and int(number) < len(self.roots) and "\0" not in below:
            root = self.roots[int(number)]
            path = (root / below).resolve()
            if path.is_relative_to(root) and path.exists():
                return path
        raise NotFoundError(f"expected something in the given folders, found nothing at {at[:200]!r}")

    def run(self, at: str) -> RunItem:
        """The run with this name. Raises NotFoundError."""
        path = self.find(at)
        if not is_run(path):
            raise NotFoundError(f"expected a run folder, found none at {at[:200]!r}")
        return RunItem(at, path)

    def runs(self) -> list[RunItem]:
        """All runs, the newest first."""
        found = [
            RunItem(self.name(number, path), path)
            for number, root in enumerate(self.roots)
            for path in folders_in(root)
            if is_run(path)
        ]
        return sorted(found, key=lambda run: -run.changed)[:MOST_RUNS]

    def studies(self) -> list[Item]:
        """Folders of studies and comparisons with at least one finished run."""
        return [
            Item(self.name(number, path), path)
            for number, root in enumerate(self.roots)
            for path in folders_in(root)
            if any((path / "runs").glob("*/summary.json")) and not is_run(path)
        ]

    def scenarios(self) -> list[Item]:
        """Scenario files directly in the given folders."""
        return [
            Item(self.name(number, path), path)
            for number, root in enumerate(self.roots)
            for path in sorted(root.glob("*.toml"))
            if path.resolve().is_relative_to(root)
        ]

    def images(self) -> list[Item]:
        """Images outside run folders."""
        found: list[Item] = []
        for number, root in enumerate(self.roots):
            for folder in folders_in(root):
                if is_run(folder):
                    continue
                for path in sorted(folder.iterdir()):
                    if path.suffix.lower() in IMAGES and path.resolve().is_relative_to(root):
                        found.append(Item(self.name(number, path), path))
                    if len(found) >= MOST_IMAGES:
                        return found
        return found

    def at(self, path: Path) -> str:
        """The name in addresses of a path in one of the given folders."""
        number = next(number for number, root in enumerate(self.roots) if path.is_relative_to(root))
        return self.name(number, path)

    def name(self, number: int, path: Path) -> str:
        """The name in addresses of a path below a given folder."""
        below = path.relative_to(self.roots[number]).as_posix()
        return f"{number}/{below}" if below != "." else str(number)


def is_run(path: Path) -> bool:
    """Whether a run began in this folder."""
    return (path / "scenario.json").is_file() and (path / "events.jsonl").is_file()


def folders_in(root: Path) -> Iterator[Path]:
    """The folder and the folders below it that are no links; not the inside of runs, not hidden ones."""
    for folder, below, _ in os.walk(root):
        path = Path(folder)
        yield path
        deep = len(path.relative_to(root).parts) >= DEPTH or is_run(path)
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
