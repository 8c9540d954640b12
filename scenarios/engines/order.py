"""What a person orders with `casam run`, checked before anything slow is imported or written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.scenario import RUN_NAME, Scenario
from casam_core.errors import RunInputError
from scenarios.engines import Engine


@dataclass(frozen=True)
class RunOrder:
    """How the user wants a scenario to be run.

    out: the run folder; by default runs/<scenario>-<time>. ledgers: a folder of privacy ledgers that the run
    continues; by default every run starts with new ledgers. workers: processes of the in-process engine.
    checked: the caller has read all data already (scenarios/study).
    """

    engine: Engine = Engine.simulation
    data_root: Path | None = None
    out: Path | None = None
    ledgers: Path | None = None
    workers: int = 1
    checked: bool = False


def data_folder(data_root: Path | None) -> Path | None:
    """--data-root as an absolute path. Raises RunInputError if it is not a folder."""
    found = data_root.expanduser().resolve() if data_root else None
    if found is not None and not found.is_dir():
        raise RunInputError(f"--data-root: expected a folder, found nothing at {found}; check the path")
    return found


def weights_at(checkpoint: Path | None) -> list[str]:
    """--checkpoint as a setting of the scenario, absolute. Raises RunInputError if it is no file."""
    if checkpoint is None:
        return []
    found = checkpoint.expanduser().resolve()
    if not found.is_file():
        raise RunInputError(f"--checkpoint: expected a file, found nothing at {found}; check the path")
    return [f"backbone.checkpoint={json.dumps(str(found))}"]


def choose_folder(scenario: Scenario, out: Path | None) -> Path:
    """The run folder as an absolute path. Raises RunInputError if it already holds files."""
    name = f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = (out or Path("runs") / name).expanduser().resolve()
    if not RUN_NAME.fullmatch(folder.name):
        raise RunInputError(
            f"--out: expected a folder name of letters, digits, '.', '_' and '-', found {folder.name!r}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise folder_in_use(folder)
    return folder


def folder_in_use(folder: Path) -> RunInputError:
    """The fault of a run folder that already holds files."""
    return RunInputError(
        f"{folder}: expected a new or empty folder for the run, found files; choose another --out"
    )


def resumable(folder: Path) -> Path:
    """The folder of a run that `casam run` began, as an absolute path. Raises RunInputError."""
    found = folder.expanduser().resolve()
    if not (found / "order.json").is_file() or not (found / "scenario.json").is_file():
        raise nothing_to_resume(found)
    return found


def nothing_to_resume(folder: Path) -> RunInputError:
    """The fault of a folder without the files of a run, or with other content in them."""
    return RunInputError(
        f"--resume {folder}: expected the folder of a run that `casam run` began (order.json, "
        "scenario.json); start a new run if it ended before its first stage"
    )
