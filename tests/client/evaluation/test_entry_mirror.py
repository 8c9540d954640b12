"""Entries that a server only names come from the site's mirror, and pass the same checks as sent ones."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import bank_digest
from casam_core.bank.entry_file import Entry, digest_of
from casam_core.protocol.messages import EvaluateRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job
from client.evaluation import entry_mirror
from client.evaluation.entry_mirror import fetched
from client.institution import Institution
from client.release import permission
from tests.banks import tiny_entry
from tests.client.test_institution import institution

DATA = tiny_entry("polyp").to_bytes()
NAME = digest_of(DATA)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with one entry."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / f"{NAME}.entry").write_bytes(DATA)
    return folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a file."""
    monkeypatch.setattr(entry_mirror, "MIRROR_SECONDS", 0.0)


def test_an_entry_is_read_under_its_name(mirror: Path) -> None:
    assert fetched(mirror, [NAME, NAME]) == [DATA, DATA]


def test_a_mirror_may_be_late(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coming = (mirror / f"{NAME}.entry").rename(mirror / "coming")
    monkeypatch.setattr(time, "sleep", lambda seconds: coming.rename(mirror / f"{NAME}.entry"))
    assert fetched(mirror, [NAME]) == [DATA]


def test_all_files_of_a_request_are_awaited_together(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time does not begin again with each file."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(RefusalError):
        fetched(mirror, [NAME, "0" * 64, "1" * 64])
    assert now[0] == pytest.approx(entry_mirror.MIRROR_SECONDS, abs=1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["absent", "altered", "large", "a folder", "a pipe", "no mirror", "shut"])
def test_what_a_mirror_does_not_give_is_not_in_it(
    mirror: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = mirror / f"{NAME}.entry"
    if fault in ("absent", "a folder", "a pipe"):
        file.unlink()
    if fault == "a folder":
        file.mkdir()
    elif fault == "a pipe":
        os.mkfifo(file)
    elif fault == "altered":
        file.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    elif fault == "large":
        monkeypatch.setattr(entry_mirror, "LARGEST_ENTRY", len(DATA) - 1)
    elif fault == "shut":

        def shut(path: Path) -> bool:
            raise PermissionError(path)

        monkeypatch.setattr(Path, "is_file", shut)
    with pytest.raises(RefusalError) as refusal:
        fetched(None if fault == "no mirror" else mirror, [NAME])
    assert refusal.value.outcome == Outcome.NOT_IN_MIRROR


def asked(entry: Entry, folder: Path, way: str) -> tuple[Path, EvaluateRequest]:
    """(mirror, a request that brings one entry by its bytes, or by its name alone)."""
    data, mirror = entry.to_bytes(), folder / "mirror"
    mirror.mkdir()
    (mirror / f"{digest_of(data)}.entry").write_bytes(data)
    request = EvaluateRequest(Job("south", 1), 0, [data], bank_digest({entry.task: digest_of(data)}))
    return mirror, request if way == "bytes" else replace(request, entries=[], names=(digest_of(data),))


def outcome(tmp_path: Path, entry: Entry, way: str, **policy: Any) -> str:
    """How a site answers a request to evaluate that brings this entry."""
    plain = institution("south", tmp_path)
    mirror, request = asked(entry, tmp_path, way)
    changed = plain.site.policy.model_copy(update=policy)
    site = Institution(replace(plain.site, mirror=mirror, policy=changed), plain.scenario, plain.backbone)
    try:
        permission.evaluate(site, request)
    except RefusalError as refusal:
        return refusal.outcome
    return Outcome.OK


def broken(entry: Entry) -> Entry:
    """The entry with a layer that is not finite."""
    layer = {name: np.full_like(value, np.nan) for name, value in entry.layer.items()}
    return replace(entry, layer=layer)


@pytest.mark.parametrize("way", ["bytes", "name"])
def test_an_entry_is_checked_wherever_it_comes_from(tmp_path: Path, way: str) -> None:
    scenario = institution("south", tmp_path / "facts").scenario
    about = tiny_entry("polyp").provenance
    frame = scenario.router.model_dump().get("frame") or ""
    good = replace(
        tiny_entry("polyp", kind=scenario.router.kind),
        provenance=replace(about, scenario=scenario.learned_digest(), frame=frame),
    )
    cases = {
        "good": (good, {}, Outcome.OK),
        "foreign": (good, {"accept_entries": False}, Outcome.ENTRIES_NOT_ACCEPTED),
        "not finite": (broken(good), {}, Outcome.BAD_REQUEST),
        "of no task": (replace(good, task="knee"), {}, Outcome.BAD_REQUEST),
    }
    for name, (entry, policy, want) in cases.items():
        assert outcome(tmp_path / name, entry, way, **policy) == want, name


def test_a_request_has_entries_or_names_not_both(tmp_path: Path) -> None:
    site = institution("south", tmp_path)
    request = EvaluateRequest(Job("south", 1), 0, [DATA], "0" * 64, names=(NAME,))
    with pytest.raises(RefusalError, match="found both"):
        permission.evaluate(site, request)


@pytest.mark.parametrize("name", ["../../../policy", "A" * 64, "", "0" * 63])
def test_a_server_cannot_name_another_file(name: str) -> None:
    request = EvaluateRequest(Job("north", 1), 0, [], "0" * 64, names=(name,)).to_payload()
    with pytest.raises(ValueError, match="pattern"):
        EvaluateRequest.of(request)
