"""The bank: entries that never change, files that are whole, damage that is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from casam_core.bank.bank import SCHEMA, Bank
from casam_core.bank.entry_file import Entry, Provenance, digest_of
from casam_core.errors import BankError

ROOT = Path(__file__).resolve().parents[3]
PROVENANCE = Provenance(
    form="low_rank",
    rank=2,
    router="gaussian",
    features="moments",
    beta=16.5,
    sampled=False,
    backbone="b" * 64,
    holders=("north", "süd"),
    images=12,
    stage=1,
    scenario="s" * 64,
)


def entry_of(task: str = "polyp", seed: int = 0) -> Entry:
    rng = np.random.default_rng(seed)
    return Entry(
        task=task,
        layer={"up": rng.random((3, 2), np.float32), "down": rng.random((2, 3), np.float32)},
        router={"mean_F": rng.random(4, np.float32), "directions_KF": np.zeros((0, 4), np.float32)},
        threshold=0.125 + seed,
        provenance=PROVENANCE,
    )


def same(one: Entry, other: Entry) -> bool:
    return (
        (one.task, one.threshold, one.provenance) == (other.task, other.threshold, other.provenance)
        and _same_arrays(one.layer, other.layer)
        and _same_arrays(one.router, other.router)
    )


def _same_arrays(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """A bank of two tasks."""
    made = Bank.open(tmp_path / "bank", create=True)
    made.add(entry_of("polyp"))
    made.add(entry_of("heart", seed=1))
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- Entries as bytes ------------------------------------------------------------------------------


def test_an_entry_survives_its_bytes() -> None:
    assert same(Entry.from_bytes(entry_of().to_bytes()), entry_of())


def test_an_entry_without_a_threshold_stays_without_one() -> None:
    entry = replace(entry_of(), threshold=None)
    assert Entry.from_bytes(entry.to_bytes()).threshold is None


def test_an_array_without_axes_keeps_its_shape() -> None:
    entry = replace(entry_of(), layer={"gain": np.array(2.5, np.float32)})
    assert same(Entry.from_bytes(entry.to_bytes()), entry)
    assert Entry.from_bytes(entry.to_bytes()).layer["gain"].shape == ()


def test_equal_entries_have_equal_bytes_whatever_the_order_and_layout_of_their_arrays() -> None:
    entry = entry_of()
    turned = replace(
        entry,
        layer={name: np.asfortranarray(entry.layer[name]) for name in reversed(entry.layer)},
        router={name: entry.router[name] for name in reversed(entry.router)},
    )
    assert turned.to_bytes() == entry.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"threshold": 0.5},
        {"layer": {"up": np.ones(1, np.float32)}},
        {"router": {}},
        {"provenance": replace(PROVENANCE, stage=2)},
        {"provenance": replace(PROVENANCE, holders=("süd", "north"))},
    ],
)
def test_entries_that_differ_have_different_names(change: dict[str, Any]) -> None:
    assert digest_of(replace(entry_of(), **change).to_bytes()) != digest_of(entry_of().to_bytes())


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_a_fresh_process_writes_the_same_bytes_whatever_its_hash_seed(hash_seed: str) -> None:
    code = (
        "import numpy as np\n"
        "from casam_core.bank.entry_file import Entry, Provenance, digest_of\n"
        f"p = {PROVENANCE!r}\n"
        "rng = np.random.default_rng(0)\n"
        "layer = {'up': rng.random((3, 2), np.float32), 'down': rng.random((2, 3), np.float32)}\n"
        "router = {'mean_F': rng.random(4, np.float32), 'directions_KF': np.zeros((0, 4), np.float32)}\n"
        "print(digest_of(Entry('polyp', layer, router, 0.125, p).to_bytes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest_of(entry_of().to_bytes())


def file_about(about: Any, **tensors: Any) -> bytes:
    """A safetensors file whose `entry` is `about`."""
    text = about if isinstance(about, str) else json.dumps(about)
    return bytes(save_tensors({"layer/w": np.zeros(2, np.float32), **tensors}, metadata={"entry": text}))


def about_of(**changes: Any) -> dict[str, Any]:
    provenance = {**PROVENANCE.__dict__, "holders": list(PROVENANCE.holders)}
    return {"schema": SCHEMA, "task": "polyp", "threshold": 1.0, "provenance": provenance} | changes


def test_the_hand_made_file_is_read_when_nothing_is_wrong() -> None:
    assert Entry.from_bytes(file_about(about_of())).provenance == PROVENANCE


@pytest.mark.parametrize(
    "about",
    [
        "not json",
        "[" * 100_000,
        "[]",
        "5",
        {},
        about_of(task=["polyp"]),
        about_of(task=None),
        about_of(threshold="high"),
        json.dumps(about_of()).replace("1.0", "1" + "0" * 400),
        about_of(provenance=None),
        about_of(provenance="text"),
        about_of(provenance={}),
        about_of(provenance={**about_of()["provenance"], "holders": 3}),
    ],
)
def test_an_entry_whose_description_is_wrong_is_refused(about: Any) -> None:
    with pytest.raises(BankError):
        Entry.from_bytes(file_about(about))


def test_a_foreign_schema_is_refused_with_both_numbers() -> None:
    with pytest.raises(BankError, match=rf"schema 99.*reads schema {SCHEMA}"):
        Entry.from_bytes(file_about(about_of(schema=99)))


def test_provenance_of_a_later_version_is_refused_by_key() -> None:
    later = {**about_of()["provenance"], "colour": "blue"}
    with pytest.raises(BankError, match=r"unknown keys \['colour'\]"):
        Entry.from_bytes(file_about(about_of(provenance=later)))


def test_a_safetensors_file_that_is_no_entry_is_refused() -> None:
    with pytest.raises(BankError, match="not an entry file"):
        Entry.from_bytes(save_tensors({"w": np.zeros(1)}))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x00" * 8)
@example(b"\xff" * 64)
@example(b"\x02" + b"\x00" * 7 + b"{}")
def test_random_bytes_give_nothing_but_a_bank_error(data: bytes) -> None:
    with pytest.raises(BankError):
        Entry.from_bytes(data)


GOOD = entry_of().to_bytes()
MUTATIONS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=400)
@given(changes=MUTATIONS, cut=st.one_of(st.none(), st.integers(0, len(GOOD))))
def test_a_mutated_entry_is_refused_or_another_entry(changes: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    mutated = bytes(data[:cut])
    try:
        entry = Entry.from_bytes(mutated)
    except BankError:
        return
    assert isinstance(entry.task, str)
    assert isinstance(entry.threshold, float)
    assert mutated == GOOD or digest_of(mutated) != digest_of(GOOD)


# --- The folder ------------------------------------------------------------------------------------


def test_a_bank_opened_again_holds_the_same_entries_in_the_same_order(bank: Bank) -> None:
    again = Bank.open(bank.folder)
    assert again.tasks == bank.tasks == ("polyp", "heart")
    assert again.digest == bank.digest
    assert len(again) == 2
    assert "polyp" in again
    assert "spleen" not in again
    for one, other in zip(again, [entry_of("polyp"), entry_of("heart", seed=1)], strict=True):
        assert same(one, other)


def test_an_entrys_file_is_named_by_the_hash_of_its_bytes(bank: Bank) -> None:
    data = entry_of("polyp").to_bytes()
    assert bank.digest_of("polyp") == digest_of(data)
    assert bank.bytes_of("polyp") == data
    assert (bank.folder / "entries" / f"{digest_of(data)}.entry").read_bytes() == data


def test_equal_banks_are_equal_files(bank: Bank, tmp_path: Path) -> None:
    copy = Bank.open(tmp_path / "copy", create=True)
    for task in bank.tasks:
        copy.add_bytes(bank.bytes_of(task))
    assert copy.digest == bank.digest
    assert files(copy.folder) == files(bank.folder)


def test_the_digest_knows_content_and_order(tmp_path: Path) -> None:
    one, two = entry_of("polyp"), entry_of("heart", seed=1)
    digests = set()
    for k, entries in enumerate([[], [one], [one, two], [two, one], [one, entry_of("heart", seed=2)]]):
        bank = Bank.open(tmp_path / str(k), create=True)
        for entry in entries:
            bank.add(entry)
        digests.add(bank.digest)
    assert len(digests) == 5


def test_adding_an_entry_changes_no_byte_of_the_others(bank: Bank) -> None:
    before = files(bank.folder / "entries")
    bank.add(entry_of("spleen", seed=2))
    after = files(bank.folder / "entries")
    assert len(after) == 3
    assert all(after[name] == data for name, data in before.items())


def test_adding_the_same_entry_twice_changes_nothing(bank: Bank) -> None:
    before = files(bank.folder)
    assert bank.add(entry_of("polyp")) == bank.digest_of("polyp")
    assert files(bank.folder) == before


def test_another_entry_for_a_learned_task_is_refused(bank: Bank) -> None:
    before = files(bank.folder)
    with pytest.raises(BankError, match="'polyp' already has another entry"):
        bank.add(entry_of("polyp", seed=5))
    assert files(bank.folder) == before
    assert same(Bank.open(bank.folder)["polyp"], entry_of("polyp"))


def test_bytes_that_are_no_entry_are_not_added(bank: Bank) -> None:
    before = files(bank.folder)
    with pytest.raises(BankError, match="not an entry file"):
        bank.add_bytes(b"garbage")
    assert files(bank.folder) == before


@pytest.mark.parametrize("survives", [0, 1])
def test_a_crash_while_adding_leaves_the_old_bank_and_adding_can_be_repeated(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """The power fails at the entry's own rename (0), or between the entry and the manifest (1)."""
    left, rename = [survives], os.replace

    def failing(unfinished: Path, target: Path) -> None:
        if left[0] == 0:
            raise OSError("power failure")
        left[0] -= 1
        rename(unfinished, target)

    old, new = bank.digest, entry_of("spleen", seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="power failure"):
            bank.add(new)
    for seen in (bank, Bank.open(bank.folder)):
        assert seen.digest == old
        assert seen.tasks == ("polyp", "heart")
        assert [entry.task for entry in seen] == ["polyp", "heart"]
    assert not [name for name in files(bank.folder) if Path(name).name.startswith(".")]
    bank.add(new)
    assert Bank.open(bank.folder).tasks == ("polyp", "heart", "spleen")
    assert same(Bank.open(bank.folder)["spleen"], new)


def test_heads_say_what_entries_say_and_are_read_once(bank: Bank) -> None:
    want = [bank[task].head for task in bank.tasks]
    assert list(Bank.open(bank.folder).heads()) == want
    assert list(bank.heads()) == want
    for file in (bank.folder / "entries").iterdir():
        file.unlink()
    assert list(Bank.open(bank.folder).heads()) == want


def test_the_head_of_an_altered_entry_is_refused(bank: Bank) -> None:
    path = bank.folder / "entries" / f"{bank.digest_of('polyp')}.entry"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BankError, match="was altered"):
        list(bank.heads())


def test_a_missing_bank_is_refused_unless_it_may_be_created(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"no bank at .*nowhere.*manifest\.json"):
        Bank.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert Bank.open(tmp_path / "nowhere", create=True).tasks == ()
    assert Bank.open(tmp_path / "nowhere").tasks == ()


def test_an_unknown_task_is_refused_with_the_known_ones(bank: Bank) -> None:
    with pytest.raises(BankError, match="'spleen'; the bank holds: polyp, heart"):
        bank["spleen"]


def test_an_altered_entry_file_is_found(bank: Bank) -> None:
    path = bank.folder / "entries" / f"{bank.digest_of('polyp')}.entry"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fresh = Bank.open(bank.folder)
    with pytest.raises(BankError) as refusal:
        fresh["polyp"]
    assert str(path) in str(refusal.value)
    assert digest_of(bytes(data)) in str(refusal.value)
    assert same(fresh["heart"], entry_of("heart", seed=1))


def test_a_deleted_entry_file_is_found(bank: Bank) -> None:
    (bank.folder / "entries" / f"{bank.digest_of('heart')}.entry").unlink()
    fresh = Bank.open(bank.folder)
    with pytest.raises(BankError, match=r"is missing \(entry of task 'heart'\)"):
        list(fresh)


def _swap_schema(content: dict[str, Any]) -> None:
    content["schema"] = 2


def _drop_entries(content: dict[str, Any]) -> None:
    del content["entries"]


def _entries_of_text(content: dict[str, Any]) -> None:
    content["entries"] = ["polyp"]


def _no_digest(content: dict[str, Any]) -> None:
    del content["entries"][0]["sha256"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swap_schema, "has schema 2, this version reads 1"),
        (_drop_entries, "is damaged"),
        (_entries_of_text, "is damaged"),
        (_no_digest, "is damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    bank: Bank, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = bank.folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BankError, match=words):
        Bank.open(bank.folder)


@settings(max_examples=50)
@given(data=st.binary(max_size=60))
@example(b"")
@example(b"[]")
@example(b"null")
@example(b"\xff\xfe")
@example(b"[" * 100_000)
def test_a_manifest_of_random_bytes_gives_a_bank_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bank")
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BankError, match=r"manifest\.json"):
        Bank.open(folder)


def test_a_removed_task_leaves_no_byte_and_the_others_as_they_were(tmp_path: Path) -> None:
    both, one = Bank.open(tmp_path / "both", create=True), Bank.open(tmp_path / "one", create=True)
    both.add(entry_of("polyp"))
    both.add(entry_of("histology", seed=1))
    one.add(entry_of("histology", seed=1))
    both.remove("polyp")
    assert files(both.folder) == files(one.folder)
    assert Bank.open(both.folder).tasks == both.tasks == ("histology",)
    with pytest.raises(BankError, match="polyp"):
        both.remove("polyp")


def test_what_a_crash_left_of_a_removed_entry_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank.open(tmp_path / "bank", create=True)
    bank.add(entry_of("polyp"))
    bank.add(entry_of("histology", seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(Bank, "sweep", lambda self: None)  # the crash, between manifest and deletion
        bank.remove("polyp")
    again = Bank.open(tmp_path / "bank")
    assert len(files(again.folder)) == 3
    again.sweep()
    assert files(again.folder).keys() == {
        "manifest.json",
        str(again.file_of("histology").relative_to(again.folder)),
    }
    assert again["histology"].task == "histology"


def test_an_entry_learned_anew_stands_in_the_old_ones_place(tmp_path: Path) -> None:
    bank = Bank.open(tmp_path / "bank", create=True)
    bank.add(entry_of("polyp"))
    bank.add(entry_of("histology", seed=1))
    digest = bank.replace(entry_of("polyp", seed=2))
    again = Bank.open(tmp_path / "bank")
    assert again.tasks == ("polyp", "histology")
    assert again.digest_of("polyp") == digest
    assert same(again["polyp"], entry_of("polyp", seed=2))
    assert len(files(tmp_path / "bank")) == 3  # the manifest and two entries
    assert bank.replace(entry_of("polyp", seed=2)) == digest
    assert same(bank["polyp"], entry_of("polyp", seed=2))
