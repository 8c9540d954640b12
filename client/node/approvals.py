"""What a site approved, and what waits for its approval: files in the site's home.

`approvals.json` names every scenario that was approved, `approved/` holds their texts, and `pending/` the
texts that wait for a person.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from casam_core.config.data_spec import overlap
from casam_core.config.scenario import Scenario
from casam_core.config.site_file import SiteFile
from casam_core.errors import PolicyError
from casam_core.files import locked, make_folder, remove, write_atomic
from casam_core.protocol.audit import now

APPROVALS, LOCK = "approvals.json", "approvals.lock"
"""File names. The lock: whoever changes the list reads it and writes it while nobody else does."""

MOST_PENDING = 16
"""How many scenarios wait at most; a new one replaces the one that waits longest."""


@dataclass(frozen=True)
class Approval:
    """One approved scenario. tasks: this site's tasks in it. by: a person, or the site file's rules."""

    digest: str
    name: str
    tasks: tuple[str, ...]
    time: str
    by: Literal["person", "rules"]
    withdrawn: str = ""


@lru_cache(maxsize=8)
def digest_of_text(text: str) -> str:
    """SHA-256 of a scenario's canonical JSON, in hex: its name in approvals.

    Cached, because every node of a simulation asks, and the text has a line for every institution.
    """
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=8)
def read_sent(text: str) -> Scenario:
    """A scenario from its canonical JSON. Raises PolicyError for any other text."""
    try:
        table = json.loads(text)
        # A resolved scenario has no copies; a few bytes of them would become 10,000 institutions.
        if any("copies" in site for site in table["institutions"]):
            raise ValueError("copies of institutions")
        scenario = Scenario.model_validate_json(text)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise PolicyError(f"expected a resolved scenario, found {type(error).__name__}") from error
    if scenario.canonical_json() != text:
        raise PolicyError("expected a resolved scenario, found another form of it")
    return scenario


def approve(
    scenario: Scenario, institution: str, site: SiteFile, home: Path, by: Literal["person", "rules"]
) -> Approval:
    """Write down that the site approves the scenario.

    Raises:
        PolicyError: it does not name the institution, or a task has its `max_scenarios` already.
        DataError: the site file does not describe one of its tasks.
    """
    if institution not in [spec.name for spec in scenario.institutions]:
        raise PolicyError(f"{scenario.name}: expected a scenario that names {institution!r}, found none")
    text = scenario.canonical_json()
    digest = digest_of_text(text)
    tasks = tuple(sorted(scenario.institution(institution).data))
    site.described(tasks)
    given = Approval(digest, scenario.name, tasks, now(), by)
    with locked(home / LOCK):
        others = [approval for approval in approvals_in(home) if approval.digest != digest]
        check_number(site, tasks, others)
        make_folder(home / "approved", 0o700)
        write_atomic(home / "approved" / f"{digest}.json", text.encode())
        write_approvals([*others, given], home)
    remove(home / "pending" / f"{digest}.json")
    return given


def check_number(site: SiteFile, tasks: Sequence[str], before: Sequence[Approval]) -> None:
    """Raise PolicyError if a task's images, under any name, are in `max_scenarios` approved scenarios."""
    for task, described in site.described(tasks).items():
        place = described.place
        same = {name for name, spec in site.tasks.items() if overlap(spec.place, place)}
        used = sum(not same.isdisjoint(approval.tasks) for approval in before)
        if used >= site.max_scenarios:
            raise PolicyError(
                f"task {task!r}: expected at most {site.max_scenarios} different scenarios (max_scenarios), "
                f"found {used} approved before; every further question tells more about the same images"
            )


def withdraw(digest: str, home: Path) -> None:
    """Take an approval back; it still counts for `max_scenarios`. Raises PolicyError if there is none."""
    with locked(home / LOCK):
        before = approvals_in(home)
        if digest not in [approval.digest for approval in before]:
            raise PolicyError(f"expected an approved scenario, found none with digest {digest}")
        write_approvals(
            [replace(item, withdrawn=now()) if item.digest == digest else item for item in before], home
        )


def approvals_in(home: Path) -> list[Approval]:
    """All approvals, oldest first. Raises PolicyError for a damaged file."""
    path = home / APPROVALS
    if not path.exists():
        return []
    try:
        lines = json.loads(path.read_text())
        return [Approval(**{**line, "tasks": tuple(line["tasks"])}) for line in lines]
    except OSError as error:
        raise PolicyError(
            f"{path}: expected a file that this user can read, found: {error.strerror}; give it to the user "
            "that runs the node"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PolicyError(f"{path}: expected a list of approvals; restore it from a backup") from error


def write_approvals(approvals: Sequence[Approval], home: Path) -> None:
    """Write approvals.json, readable by its owner only."""
    text = json.dumps([asdict(approval) for approval in approvals], indent=2) + "\n"
    write_atomic(home / APPROVALS, text.encode())


def keep_pending(digest: str, text: str, home: Path) -> bool:
    """Keep a scenario for a person to read. Returns False if it waits already."""
    folder = home / "pending"
    if (folder / f"{digest}.json").exists():
        return False
    make_folder(home, 0o700)
    make_folder(folder, 0o700)
    for old in pending_in(home)[: 1 - MOST_PENDING]:
        remove(old)
    write_atomic(folder / f"{digest}.json", text.encode())
    return True


def pending_in(home: Path) -> list[Path]:
    """The scenarios that wait, the oldest first."""
    return sorted((home / "pending").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
