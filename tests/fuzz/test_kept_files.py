"""Banks, state, quarantine, ledgers, logs, events: damage is found, named, and never written over."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError, CasamError, RunError
from casam_core.protocol.audit import read_log
from client.release.ledger import Ledger, Spend
from scenarios.engines.watch import Events, RunView
from scenarios.inspection.verify import verify
from scenarios.report.reading import read_all, read_events
from server.defence.quarantine import Quarantine
from server.run.run_folder import RunFolder, read_arrivals
from server.run.state import restore
from tests.banks import tiny_entry
from tests.conftest import tiny_table
from tests.fuzz.damage import contents, damaged, examples
from tests.fuzz.test_text_files import check_line
from tests.runs import FinishedRun

ENTRY = tiny_entry("polyp").to_bytes()


@given(damaged(ENTRY))
@examples(60, 1200)
def test_a_damaged_entry(data: bytes) -> None:
    """Also one whose header claims more numbers than there are bytes: nothing is set aside for them."""
    try:
        Entry.from_bytes(data)
    except BankError as error:
        check_line(error)


@given(st.data())
@examples(40, 600)
def test_a_damaged_bank_is_found_and_left_as_it_is(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bank"
        bank = Bank.open(folder, create=True)
        bank.add(tiny_entry("polyp"))
        bank.add(tiny_entry("histology"))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        broken = data.draw(damaged(path.read_bytes()))
        changed = broken != path.read_bytes()
        path.write_bytes(broken)
        before = contents(folder)
        try:
            read = Bank.open(folder)
            for task in read.tasks:
                assert read[task].task
            if path.suffix == ".entry":
                assert not changed, "an altered entry was read"
        except BankError as error:
            check_line(error)
        try:
            faults = verify(folder)
            assert path.suffix != ".entry" or any(faults.values()) == changed
        except BankError as error:
            check_line(error)
        assert contents(folder) == before


@pytest.fixture(scope="module")
def finished(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run, for this module alone."""
    return Path(shutil.copytree(finished_run(tiny_table()), tmp_path_factory.mktemp("fuzz") / "run"))


READERS: dict[str, Callable[[Path], object]] = {
    "state.json": lambda run: restore(FolderOf(run)),  # type: ignore[arg-type]
    "stages/0001.json": lambda run: restore(FolderOf(run)),  # type: ignore[arg-type]
    "events.jsonl": lambda run: (read_events(run / "events.jsonl"), watched(run / "events.jsonl")),
    "audit.jsonl": lambda run: read_arrivals(run / "audit.jsonl"),
    "summary.json": lambda run: read_all([run]),
    "scenario.json": lambda run: RunFolder(run, Scenario.model_validate(tiny_table())),
    "institutions/north/private/audit.jsonl": lambda run: read_log(
        run / "institutions" / "north" / "private" / "audit.jsonl"
    ),
}


def watched(path: Path) -> RunView:
    """The run as `casam watch` sees it."""
    view = RunView()
    for event in Events(path).new():
        view.take(event)
    return view


class FolderOf:
    """As much of a run folder as `restore` looks at."""

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize("file", READERS)
@given(data=st.data())
@examples(15, 350)
def test_a_damaged_file_of_a_run(file: str, finished: Path, data: st.DataObject) -> None:
    """It is read as far as it is whole, or refused; nothing else in the folder changes."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        shutil.copytree(finished, run, ignore=shutil.ignore_patterns("home", "*.png"))
        path = run / file
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        before = contents(run)
        try:
            READERS[file](run)
        except CasamError as error:
            check_line(error)
        assert contents(run) == before


@given(st.data())
@examples(30, 600)
def test_a_damaged_ledger_lets_nothing_leave(data: st.DataObject) -> None:
    """A line that a crash tore is cut; any other damage refuses the next release."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.jsonl"
        for number in range(3):
            spend = Spend(f"2026-01-0{number + 1}", "run", "align", "polyp", "/data", "train", "image", 1.5)
            Ledger(path).add(spend, lambda lines: None)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        whole = path.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1
        try:
            spends = Ledger(path).lines()
            assert len(spends) <= whole
            assert all(spend.noise_multiplier is not None for spend in spends)
        except CasamError as error:
            check_line(error)


@given(
    st.binary(max_size=300)
    | damaged(json.dumps([{"task": "polyp", "stage": 1, "entry": "0" * 64, "reasons": ["x"]}]).encode())
)
@examples(30, 600)
def test_a_damaged_quarantine(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / "quarantine").mkdir()
        (run / "quarantine" / "manifest.json").write_bytes(data)
        try:
            Quarantine(run).held_back()
        except BankError as error:
            check_line(error)


def test_a_state_without_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        restore(FolderOf(tmp_path))  # type: ignore[arg-type]
