"""Check what a run left: a bank (the hash of every file, the content of every entry), the audit logs of both
sides, and a receipt of unlearning."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.errors import BankError
from casam_core.protocol.audit import Release
from casam_core.protocol.messages import purge_statement
from casam_core.protocol.register import Register, is_signed
from casam_core.routing.decision import IDENTITY
from casam_use.edit import check_alike
from casam_use.loaded_bank import LoadedEntry

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


def compared(logged: Sequence[Release], arrived: Sequence[Release]) -> tuple[list[Release], list[str]]:
    """(what a site sent in the server's runs, how that differs from what arrived).

    An empty log of a site is compared with all that arrived.
    """
    runs, names = {release.run for release in arrived}, {release.institution for release in logged}
    # Nodes answer identify queries before the server knows any institution: only the site logs them.
    left = [release for release in logged if release.run in runs and release.kind != "query.identify"]
    return left, differences(
        left, [release for release in arrived if not names or release.institution in names]
    )


def differences(left: Sequence[Release], arrived: Sequence[Release]) -> list[str]:
    """The differences between the logs of both sides, by request; one line each.

    A request may have several lines on a side. All of them count, so a release that was sent twice, or logged
    twice, is a difference, too.
    """
    sent, got = by_request(left), by_request(arrived)
    found = []
    for request in dict.fromkeys([*sent, *got]):
        mine, theirs = sent.get(request, []), got.get(request, [])
        only_left, only_arrived = without_equal(mine, theirs), without_equal(theirs, mine)
        for release, other in zip(only_left, only_arrived, strict=False):
            found.append(f"arrived as {other.digest[:12]}, {other.bytes} bytes: {described(release)}")
        both = min(len(only_left), len(only_arrived))
        again = " once more than it arrived" if theirs else " and never arrived"
        found += [f"left{again}: {described(release)}" for release in only_left[both:]]
        again = " once more than it left" if mine else " and never left"
        found += [f"arrived{again}: {described(release)}" for release in only_arrived[both:]]
    return found


def by_request(releases: Sequence[Release]) -> dict[str, list[Release]]:
    """The releases by the request that they answer."""
    found: dict[str, list[Release]] = {}
    for release in releases:
        found.setdefault(release.request, []).append(release)
    return found


def without_equal(releases: Sequence[Release], others: Sequence[Release]) -> list[Release]:
    """The releases without one equal release for each of `others`; equal: the same digest and bytes."""
    left = Counter((other.digest, other.bytes) for other in others)
    found = []
    for release in releases:
        key = (release.digest, release.bytes)
        if left[key]:
            left[key] -= 1
        else:
            found.append(release)
    return found


def described(release: Release) -> str:
    """A release in a line about a difference."""
    return f"{release.kind} of stage {release.stage} ({release.digest[:12]}, {release.bytes} bytes)"


def faults_in_receipt(
    receipt: Mapping[str, Any], register: Register, digests: Sequence[str] = ()
) -> list[str]:
    """What is wrong with a receipt, one line each.

    Args:
        register: the keys that the reader trusts; a receipt holds none.
        digests: of the entries in the bank afterwards.

    Raises:
        KeyError, TypeError, AttributeError: it is no receipt.
    """
    statement = {k: v for k, v in receipt.items() if k != "signature"}
    found = []
    if not is_signed(register.server, statement, str(receipt["signature"])):
        found.append("the receipt was altered, or another key than the registered server's signed it")
    gone = sorted([*receipt["deleted"].values(), *(old for old, _ in receipt["retrained"].values())])
    for name, signature in receipt["purged"].items():
        said = purge_statement(name, receipt["run"], receipt["institution"], gone)
        if not register.is_by(name, said, str(signature)):
            found.append(f"{name} did not sign with its registered key that it deleted these entries")
    found += [f"the bank still holds {digest}" for digest in gone if digest in digests]
    return found
