"""The bank as an institution sees it: its own entries win, and the layers that answer are built once."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from casam_core.bank.bank import Bank
from casam_core.errors import BankError
from client.evaluation.evaluator import Answering, layer_of
from client.evaluation.own_entries import KnownEntries
from tests.banks import tiny_backbone, tiny_bank, tiny_entry


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    layer_of.cache_clear()


def known(folder: Path) -> KnownEntries:
    own = Bank.open(folder / "own", create=True)
    return KnownEntries(tiny_bank(folder / "bank"), own)


def answering(entries: KnownEntries, task: str) -> Answering:
    return Answering(entries.digest_of(task), entries.file_of(task), task)


def test_own_entries_win_and_come_in_the_banks_order(tmp_path: Path) -> None:
    own = Bank.open(tmp_path / "own", create=True)
    own.add(replace(tiny_entry("polyp"), threshold=99.0))
    own.add(tiny_entry("liver"))
    entries = KnownEntries(tiny_bank(tmp_path / "bank"), own)
    assert entries.tasks == ("polyp", "histology", "liver")
    assert entries.heads[0].threshold == 99.0
    assert entries.digest_of("polyp") == own.digest_of("polyp")
    assert entries["polyp"].threshold == 99.0
    assert entries.file_of("polyp").is_relative_to(tmp_path / "own")


def test_institutions_of_a_process_share_an_entrys_layer(tmp_path: Path) -> None:
    north, south = known(tmp_path / "north"), known(tmp_path / "south")
    backbone = tiny_backbone()
    one = layer_of(answering(north, "polyp"), backbone)
    assert layer_of(answering(south, "polyp"), backbone) is one
    assert layer_of(answering(north, "histology"), backbone) is not one


def test_a_kept_layer_keeps_no_bank_in_memory(tmp_path: Path) -> None:
    entries = known(tmp_path)
    layer_of(answering(entries, "polyp"), tiny_backbone())
    gone = weakref.ref(entries)
    del entries
    gc.collect()
    assert gone() is None
    assert layer_of.cache_info().currsize == 1


def test_an_entry_that_was_altered_does_not_answer(tmp_path: Path) -> None:
    entries = known(tmp_path)
    file = entries.file_of("polyp")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BankError, match="was altered"):
        layer_of(answering(entries, "polyp"), tiny_backbone())
