"""`casam bank`: what it prints, what it writes, what it refuses; the banks it is given never change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry, Provenance
from casam_core.config.public_files import file_of
from casam_core.model.backbones.sam import OFFICIAL_SHA256
from casam_core.routing.public_frames import FRAMES
from casam_use.frame_fit import make_frame
from scenarios.export.official import LAYER_NAMES, LAYER_SHAPES, VAE_SHAPES
from tests.banks import files_of, tiny_backbone, tiny_bank, tiny_entry
from tests.casam_command import Casam


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    tiny_bank(tmp_path / "bank")
    return tmp_path / "bank"


def changed(entry: Entry, **provenance: Any) -> Entry:
    return replace(entry, provenance=replace(entry.provenance, **provenance))


def bank_of(folder: Path, *entries: Entry) -> Path:
    bank = Bank.open(folder, create=True)
    for entry in entries:
        bank.add(entry)
    return folder


# --- show ------------------------------------------------------------------------------------------


def test_show_lists_every_entry(bank: Path, casam: Casam) -> None:
    result = casam("bank", "show", bank)
    assert result.status == 0
    opened = Bank.open(bank)
    for task in ("polyp", "histology"):
        (line,) = [line for line in result.out.splitlines() if task in line]
        facts = ["low_rank, rank 8", "public_frame on moments", "north", "24"]
        facts += [f"{opened[task].threshold:.6g}", " kB", opened.digest_of(task)[:12]]
        assert all(fact in line for fact in facts), line
    assert opened.digest in result.out
    assert opened["polyp"].provenance.backbone in result.out


def test_a_path_that_stands_for_something_else_is_one_line(bank: Path, tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "odd" / "manifest.json").mkdir(parents=True)
    for words in (
        ["remove", bank, "polyp", "--out", tmp_path / "file" / "new"],
        ["remove", bank, "polyp", "--out", tmp_path / ("x" * 250)],
        ["show", tmp_path / "odd"],
    ):
        ended = casam("bank", *words)
        assert ended.status == 1
        (line,) = ended.err.strip().splitlines()
        assert "check the path" in line
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "file", "odd"}


def test_a_folder_without_a_bank_is_refused(tmp_path: Path, casam: Casam) -> None:
    for command in (["show"], ["verify"], ["remove", "x", "--out", "new"], ["merge", "--out", "new"]):
        assert "no bank at" in casam("bank", command[0], tmp_path, *command[1:]).refusal
    assert list(tmp_path.iterdir()) == []


# --- verify ----------------------------------------------------------------------------------------


def test_a_sound_bank_passes(bank: Path, casam: Casam) -> None:
    before = files_of(bank)
    result = casam("bank", "verify", bank)
    assert (result.status, result.out.split()) == (0, ["ok", "polyp", "ok", "histology"])
    assert files_of(bank) == before


def damaged(bank: Path, kind: str) -> None:
    path = bank / "entries" / f"{Bank.open(bank).digest_of('polyp')}.entry"
    manifest = bank / "manifest.json"
    if kind == "altered":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "missing":
        path.unlink()
    elif kind == "manifest":
        manifest.write_text("{")
    else:
        content = json.loads(manifest.read_text())
        if kind == "renamed":
            content["entries"][0]["task"] = "spleen"
        else:
            content["entries"].append(content["entries"][0])
        manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("altered", "was altered"),
        ("missing", "is missing"),
        ("manifest", "is damaged"),
        ("renamed", "the manifest names task 'spleen'"),
        ("twice", "'polyp' occurs 2 times"),
    ],
)
def test_damaged_files_are_found(bank: Path, casam: Casam, kind: str, words: str) -> None:
    damaged(bank, kind)
    result = casam("bank", "verify", bank)
    assert result.status == 1
    (line,) = [line for line in result.out.splitlines() if line.startswith("FAIL")]
    assert words in line


def with_layer(entry: Entry, value: float) -> Entry:
    return replace(entry, layer={name: np.full_like(old, value) for name, old in entry.layer.items()})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (with_layer(tiny_entry("polyp"), np.nan), "layer shift_C: expected finite values"),
        (replace(tiny_entry("polyp"), threshold=np.inf), "threshold"),
        (replace(tiny_entry("polyp"), layer={}), "one value per channel"),
        (replace(tiny_entry("polyp"), router={}), "does not score"),
        (replace(tiny_entry("polyp"), task="identity"), "no task can be named"),
        (changed(tiny_entry("polyp"), form="spline"), "spline"),
        (changed(tiny_entry("polyp"), backbone="mine"), "backbone: expected a SHA-256, found 'mine'"),
        (changed(tiny_entry("polyp"), scenario="mine"), "scenario"),
        (changed(tiny_entry("polyp"), holders=()), "holders"),
        (changed(tiny_entry("polyp"), holders=("north", "north")), "holders"),
        (changed(tiny_entry("polyp"), images=0), "images"),
        (changed(tiny_entry("polyp"), stage=0), "stage"),
        (changed(tiny_entry("polyp"), scenario="official files"), "expected none for imported files"),
    ],
)
def test_entries_that_make_no_sense_are_found(tmp_path: Path, casam: Casam, entry: Entry, words: str) -> None:
    bank = bank_of(tmp_path / "bank", entry, tiny_entry("histology"))
    result = casam("bank", "verify", bank)
    assert result.status == 1
    faults = [line for line in result.out.splitlines() if line.startswith("FAIL")]
    assert any(words in line for line in faults)
    assert "ok    histology" in result.out


def test_a_bank_of_two_backbones_is_found(tmp_path: Path, casam: Casam) -> None:
    bank = bank_of(
        tmp_path / "bank", tiny_entry("polyp"), changed(tiny_entry("histology"), backbone="f" * 64)
    )
    result = casam("bank", "verify", bank)
    assert result.status == 1
    assert "must share their backbone" in result.out


# --- remove ----------------------------------------------------------------------------------------


def test_remove_writes_a_bank_without_the_task(bank: Path, tmp_path: Path, casam: Casam) -> None:
    before, old = files_of(bank), Bank.open(bank)
    result = casam("bank", "remove", bank, "polyp", "--out", "new")
    assert result.status == 0
    new = Bank.open(tmp_path / "new")
    assert new.tasks == ("histology",)
    assert new.bytes_of("histology") == old.bytes_of("histology")
    assert sorted(files_of(tmp_path / "new")) == [
        f"entries/{old.digest_of('histology')}.entry",
        "manifest.json",
    ]
    assert files_of(bank) == before
    assert casam("bank", "verify", "new").status == 0


def test_remove_refuses_unknown_tasks_and_existing_folders(bank: Path, tmp_path: Path, casam: Casam) -> None:
    before = files_of(tmp_path)
    assert (
        "'spleen'; the bank holds: polyp" in casam("bank", "remove", bank, "spleen", "--out", "new").refusal
    )
    assert "exists already" in casam("bank", "remove", bank, "polyp", "--out", bank).refusal
    assert files_of(tmp_path) == before


def test_a_damaged_bank_makes_no_new_one(bank: Path, tmp_path: Path, casam: Casam) -> None:
    damaged(bank, "altered")
    assert "was altered" in casam("bank", "remove", bank, "histology", "--out", "new").refusal
    assert "was altered" in casam("bank", "merge", bank, "--out", "new").refusal
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]


# --- merge -----------------------------------------------------------------------------------------


def test_merge_keeps_order_and_bytes_and_takes_equal_entries_once(tmp_path: Path, casam: Casam) -> None:
    one = bank_of(tmp_path / "one", tiny_entry("polyp"))
    two = bank_of(tmp_path / "two", tiny_entry("histology"), tiny_entry("polyp"))
    before = files_of(one), files_of(two)
    assert casam("bank", "merge", one, two, "--out", "new/bank").status == 0
    new = Bank.open(tmp_path / "new" / "bank")
    assert new.tasks == ("polyp", "histology")
    assert new.bytes_of("histology") == Bank.open(two).bytes_of("histology")
    assert (files_of(one), files_of(two)) == before


def test_merging_what_was_parted_gives_the_same_bank(bank: Path, tmp_path: Path, casam: Casam) -> None:
    casam("bank", "remove", bank, "histology", "--out", "one")
    casam("bank", "remove", bank, "polyp", "--out", "two")
    casam("bank", "merge", "one", "two", "--out", "new")
    assert Bank.open(tmp_path / "new").digest == Bank.open(bank).digest


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (tiny_entry("polyp", seed=1), "different entries of task 'polyp'"),
        (changed(tiny_entry("histology"), backbone="f" * 64), "must share their backbone"),
        (changed(tiny_entry("histology"), features="attention"), "must share their features"),
        (changed(tiny_entry("histology"), router="vae"), "must share their router"),
    ],
)
def test_merge_refuses_contradictions(tmp_path: Path, casam: Casam, other: Entry, words: str) -> None:
    bank_of(tmp_path / "one", tiny_entry("polyp"))
    bank_of(tmp_path / "two", other)
    before = files_of(tmp_path)
    assert words in casam("bank", "merge", "one", "two", "--out", "new").refusal
    assert files_of(tmp_path) == before


def test_settings_of_the_vae_matter_to_vaes_only(tmp_path: Path, casam: Casam) -> None:
    for router, status in (("public_frame", 0), ("vae", 2)):
        folder = tmp_path / router
        bank_of(folder / "one", changed(tiny_entry("polyp"), router=router))
        bank_of(folder / "two", changed(tiny_entry("histology"), router=router, beta=1.0))
        result = casam("bank", "merge", folder / "one", folder / "two", "--out", folder / "new")
        assert result.status == status, result.err


# --- The authors' files ----------------------------------------------------------------------------


def official_entry(task: str, **provenance: Any) -> Entry:
    """Zero weights of the authors' shapes."""
    about = Provenance(
        "casam", 8, "vae", "attention", 16.5, False, OFFICIAL_SHA256["vit_b"], ("north",), 4, 1, "0" * 64
    )
    entry = Entry(
        task=task,
        layer={LAYER_NAMES[name]: np.zeros(shape, np.float32) for name, shape in LAYER_SHAPES.items()},
        router={name: np.zeros(shape, np.float32) for name, shape in VAE_SHAPES.items()},
        threshold=0.1,
        provenance=about,
    )
    return changed(entry, **provenance)


def test_official_files_go_out_and_come_back(tmp_path: Path, casam: Casam) -> None:
    bank_of(tmp_path / "bank", official_entry("polyp"), official_entry("ACDC"))
    assert "--order polyp,ACDC" in casam("bank", "export-official", "bank", "--out", "files").out
    assert (tmp_path / "files" / "adapters_ckpt" / "ACDC" / "align_cnn_3.pth").is_file()

    result = casam("bank", "import-official", "files", "--out", "sorted")
    assert "tasks are sorted" in result.out
    assert Bank.open(tmp_path / "sorted").tasks == ("ACDC", "polyp")

    result = casam("bank", "import-official", "files", "--order", "polyp, ACDC", "--sampled", "--out", "new")
    assert "sorted" not in result.out
    new = Bank.open(tmp_path / "new")
    assert new.tasks == ("polyp", "ACDC")
    assert new["ACDC"].provenance.sampled
    assert casam("bank", "verify", "new").status == 0
    assert "official" not in casam("bank", "show", "new").err


def test_another_backbone_is_named_on_both_ways(tmp_path: Path, casam: Casam) -> None:
    digest = "f" * 64
    bank_of(tmp_path / "bank", official_entry("ACDC", backbone=digest))
    assert "backbone: expected" in casam("bank", "export-official", "bank", "--out", "files").refusal
    assert casam("bank", "export-official", "bank", "--out", "files", "--backbone", digest).status == 0
    assert "vit_x" in casam("bank", "import-official", "files", "--out", "n", "--backbone", "vit_x").refusal
    assert casam("bank", "import-official", "files", "--out", "n", "--backbone", "lite_medsam").status == 0
    assert Bank.open(tmp_path / "n")["ACDC"].provenance.backbone.startswith("79d8c9dc")


def test_what_cannot_be_exchanged_leaves_nothing_behind(bank: Path, tmp_path: Path, casam: Casam) -> None:
    before = files_of(tmp_path)
    assert "form: expected casam" in casam("bank", "export-official", bank, "--out", "files").refusal
    assert "adapters_ckpt" in casam("bank", "import-official", bank, "--out", "new").refusal
    assert files_of(tmp_path) == before


# --- the public frames of routers -------------------------------------------------------------------


@pytest.fixture
def framed(tmp_path: Path) -> tuple[Path, Path]:
    """A bank whose frame casam does not ship, and the frame's file in it."""
    rng = np.random.default_rng(3)
    width = 2 * tiny_backbone().geometry.channels
    made = make_frame({name: rng.normal(size=(12, width)) for name in "abc"}, {})
    digest = FRAMES.keep(made.to_bytes(), tmp_path / "framed" / "frames")
    entries = [changed(tiny_entry(task), frame=digest) for task in ("polyp", "histology")]
    return bank_of(tmp_path / "framed", *entries), file_of(tmp_path / "framed" / "frames", digest)


def test_a_frame_goes_with_the_entries_that_name_it(framed: tuple[Path, Path], casam: Casam) -> None:
    bank, frame = framed
    (frame.parent / "notes.json").write_text("none of a bank's files")
    for words, out in ((["remove", bank, "polyp"], "fewer"), (["merge", bank], "same")):
        assert casam("bank", *words, "--out", out).status == 0
        assert files_of(Path(out) / "frames") == {frame.name: frame.read_bytes()}


def test_a_bank_without_its_frame_or_with_another_is_not_copied(
    framed: tuple[Path, Path], casam: Casam
) -> None:
    bank, frame = framed
    other = json.loads(frame.read_text()) | {"about": {"made": "later"}}  # a frame, but not that of its name
    for spoil, words in (
        (lambda: frame.write_text(json.dumps(other)), "was altered"),
        (frame.unlink, "copy"),
    ):
        spoil()
        for command in (["remove", bank, "polyp"], ["merge", bank]):
            line = casam("bank", *command, "--out", "new").refusal
            assert words in line
            assert frame.stem[:12] in line
    assert not Path("new").exists()
