"""What earlier versions wrote opens in this one; what a later version will write is refused by name."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import digest_of
from casam_core.errors import CasamError
from casam_core.protocol.audit import AuditLog, broken, read_log
from casam_core.protocol.register import read_register
from client.node.approvals import approvals_in, read_sent
from client.release.ledger import Ledger
from client.release.question import questions_log
from client.secagg.remembered import sums_log
from server.federation.heads import Heads
from server.run.run_folder import RunFolder, read_arrivals
from server.run.state import restore
from server.run.summary_schema import read_summary
from tests.disasters.faults import Plan
from tests.disasters.homes import SERVER, SITES, furnish, scenario_of
from tests.disasters.playing import play
from tests.disasters.world import Played, World
from tests.frozen.__main__ import NUMBERS, numbers_of

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "interrupted.zip").exists())
every_version = pytest.mark.parametrize("version", VERSIONS, ids=[path.name for path in VERSIONS])


def homes(archive: Path, case: str, top: Path) -> Path:
    """The homes of an archive, with the files that they were provisioned with."""
    for name in (SERVER, *SITES):
        furnish(top / name, case)
    with zipfile.ZipFile(archive) as kept:
        kept.extractall(top)
    return top


def entries_of(bank: Bank) -> dict[str, str]:
    return {task: bank.digest_of(task) for task in bank.tasks}


@every_version
def test_an_interrupted_run_goes_on_in_this_version(version: Path, tmp_path: Path) -> None:
    """The server's state, the banks, and the sites' logs, ledgers, approvals and stored releases."""
    old = homes(version / "interrupted.zip", "private", tmp_path)
    learned = entries_of(Bank.open(old / SERVER / "run-0" / "bank"))
    kept = {path.relative_to(old): path.read_bytes() for path in old.glob("*/*.jsonl")}
    whole = World.play
    ends: dict[str, Any] = {}

    def go_on(world: World, usual: object) -> Played:
        homes(version / "interrupted.zip", "private", world.top)
        for machine in world.machines.values():
            machine.settle()
        played = whole(world, None)
        ends["learned"] = entries_of(Bank.open(world.run_folder / "bank"))
        ends["kept"] = {name: (world.top / name).read_bytes() for name in kept}
        ends["summary"] = read_summary(world.run_folder)
        return played

    with patch.object(World, "play", go_on):
        played = play(Plan(0, "private", ()))
    assert (played.end, played.broken) == ("finished", [])
    assert len(learned) >= 2
    assert list(ends["learned"].items())[: len(learned)] == list(learned.items()), "entries never change"
    assert all(ends["kept"][name].startswith(data) for name, data in kept.items()), "logs only grow"


@every_version
def test_a_scenario_that_a_site_approved_has_the_same_digest_in_this_version(
    version: Path, tmp_path: Path
) -> None:
    """Else sites would ask again, and a resumed run would not find the releases that it paid for."""
    top = homes(version / "interrupted.zip", "private", tmp_path)
    approved = list(top.glob("*/approved/*.json"))
    assert approved
    for path in approved:
        assert read_sent(path.read_text(encoding="utf-8")).digest() == path.stem


@every_version
def test_every_kept_file_opens(version: Path, tmp_path: Path) -> None:
    top = homes(version / "summed.zip", "secret", tmp_path)
    server, run = top / SERVER, top / SERVER / "run-0"
    assert read_summary(run)
    assert [entry.task for entry in Bank.open(run / "bank")] == ["polyp"]
    assert len(read_arrivals(run / "audit.jsonl")) > 20
    assert set(Heads(server / "register.json", server / "signing.key").places) == set(SITES)
    for name in SITES:
        home = top / name
        assert broken(read_log(home / "audit.jsonl")) is None
        assert AuditLog(home / "audit.jsonl").lines()
        assert len(sums_log(home / "sums.jsonl").lines()) == 3
        assert questions_log(home / "questions.jsonl").lines()
        assert [approval.name for approval in approvals_in(home)] == ["secret"]
        assert read_register(home / "register.json").institutions.keys() == set(SITES)


@pytest.mark.parametrize(
    "archive", sorted(Path(__file__).parent.glob("*/bank.zip")), ids=lambda p: p.parent.name
)
def test_an_entry_of_every_kind_gives_the_same_numbers(archive: Path, tmp_path: Path) -> None:
    """Of every form, with a finder, and of every router. Written again, an entry has the same bytes."""
    with zipfile.ZipFile(archive) as kept:
        kept.extractall(tmp_path)
    bank, numbers = Bank.open(tmp_path), json.loads((tmp_path / NUMBERS).read_text())
    assert set(numbers) == set(bank.tasks)
    assert len(numbers) > 8
    for entry in bank:
        assert numbers_of(entry, bank.frames) == pytest.approx(numbers[entry.task], rel=1e-4, abs=1e-4)
        assert digest_of(entry.to_bytes()) == bank.digest_of(entry.task)


def with_key(path: Path) -> None:
    """The last line of a log as a later version may write it."""
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({**json.loads(last), "later": 1})]) + "\n")


def with_schema(path: Path) -> None:
    """A file with the next number of its schema."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema": content["schema"] + 1}))


Reader = Callable[[Path], object]
LATER: dict[str, tuple[str, str, Callable[[Path], None], Reader]] = {
    "state": ("interrupted", "server/run-0/state.json", with_schema, lambda path: resumed(path.parent)),
    "bank": (
        "interrupted",
        "server/run-0/bank/manifest.json",
        with_schema,
        lambda path: Bank.open(path.parent),
    ),
    "summary": ("summed", "server/run-0/summary.json", with_schema, lambda path: read_summary(path.parent)),
    "ledger": ("interrupted", "south/ledger.jsonl", with_key, lambda path: Ledger(path).lines()),
    "audit log": ("interrupted", "south/audit.jsonl", with_key, lambda path: AuditLog(path).lines()),
    "questions": ("interrupted", "south/questions.jsonl", with_key, lambda path: questions_log(path).lines()),
    "sums": ("summed", "south/sums.jsonl", with_key, lambda path: sums_log(path).lines()),
}


def resumed(run: Path) -> object:
    """What a server does first in an interrupted run."""
    folder = RunFolder(run, scenario_of("private"))
    try:
        return restore(folder)
    finally:
        folder.close()


@pytest.mark.parametrize("name", LATER)
def test_what_a_later_version_writes_is_refused_by_name(name: str, tmp_path: Path) -> None:
    archive, file, change, read = LATER[name]
    case = "private" if archive == "interrupted" else "secret"
    path = homes(VERSIONS[-1] / f"{archive}.zip", case, tmp_path) / file
    read(path)
    change(path)
    for reader in (questions_log, sums_log):
        reader.cache_clear()
    with pytest.raises(CasamError) as refused:
        read(path)
    said = str(refused.value)
    assert str(path) in said
    assert "version" in said or "use the casam that made it" in said
