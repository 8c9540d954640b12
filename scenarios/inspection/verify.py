"""Check a bank: the hash of every file, and the content of every entry."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

from casam_core.bank.bank import Bank
from casam_core.bank.edit import check_alike
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import LoadedEntry
from casam_core.errors import BankError
from casam_core.routing.decision import IDENTITY

IMPORTED = "official files"
"""Provenance.scenario of an entry imported from the authors' files. Its holders are unknown: ()."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def verify(folder: Path) -> dict[str, list[str]]:
    """Faults by task, in the bank's order; a sound entry has an empty list. `bank`: faults of the whole bank.

    Raises BankError if the manifest cannot be read.
    """
    bank = Bank.open(folder)
    faults: dict[str, list[str]] = {"bank": _faults_of_manifest(folder)}
    sound: list[Entry] = []
    for task in bank.tasks:
        try:
            entry = bank[task]
            faults[task] = faults_of(entry, bank.frames)
            if entry.task != task:
                faults[task].append(f"the manifest names task {task!r}, the entry names task {entry.task!r}")
            sound.append(entry)
        except BankError as error:
            faults[task] = [str(error)]
    try:
        check_alike(sound)
    except BankError as error:
        faults["bank"].append(str(error))
    return faults


def faults_of(entry: Entry, frames: Path) -> list[str]:
    """Faults of an entry's content; its bytes match their hash already. frames: the bank's public frames."""
    about, faults = entry.provenance, []
    if entry.task == IDENTITY:
        faults.append(f"no task can be named {IDENTITY!r}, which is the route of unknown images")
    if entry.threshold is not None and not math.isfinite(entry.threshold):
        faults.append(f"threshold: expected a finite number, found {entry.threshold}")
    for part, arrays in (("layer", entry.layer), ("router", entry.router)):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                faults.append(f"{part} {name}: expected finite values, found {_odd(array)} others")
    if not _SHA256.fullmatch(about.backbone):
        faults.append(f"backbone: expected a SHA-256, found {about.backbone!r}")
    if about.stage < 1:
        faults.append(f"stage: expected 1 or more, found {about.stage}")
    faults += _faults_of_origin(entry)
    try:
        LoadedEntry.of(entry, frames)
    except BankError as error:
        faults.append(str(error))
    return faults


def _faults_of_origin(entry: Entry) -> list[str]:
    about, faults = entry.provenance, []
    if about.scenario == IMPORTED:
        if about.holders:
            faults.append(f"holders: expected none for imported files, found {', '.join(about.holders)}")
        return faults
    if not _SHA256.fullmatch(about.scenario):
        faults.append(f"scenario: expected a SHA-256 or {IMPORTED!r}, found {about.scenario!r}")
    if not about.holders or len(set(about.holders)) != len(about.holders):
        faults.append(f"holders: expected at least one, each once, found {list(about.holders)}")
    if about.images < 1:
        faults.append(f"images: expected 1 or more, found {about.images}")
    return faults


def _faults_of_manifest(folder: Path) -> list[str]:
    """Tasks that occur twice. Bank.open reads entries into a mapping, which would hide them."""
    tasks = [item["task"] for item in json.loads((folder / "manifest.json").read_text())["entries"]]
    return [
        f"manifest.json: task {task!r} occurs {tasks.count(task)} times"
        for task in dict.fromkeys(tasks)
        if tasks.count(task) > 1
    ]


def _odd(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    return int((~np.isfinite(array)).sum())
