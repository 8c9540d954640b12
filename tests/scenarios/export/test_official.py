"""The authors' files: read as the published method defines them, written back unchanged, refused by name."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry, Provenance
from casam_core.errors import BankError
from casam_core.model.backbones.sam import OFFICIAL_SHA256
from casam_use.edit import write_bank
from casam_use.loaded_bank import LoadedBank, LoadedEntry
from scenarios.export.official import LAYER_SHAPES, VAE_SHAPES, official_tasks, read_official, write_official
from scenarios.inspection.verify import faults_of

VIT_B = OFFICIAL_SHA256["vit_b"]
TASKS = {"ACDC": 0.0664, "EBHI-SEG": 0.2261, "56Nx": 0.1}


# --- The authors' tree, made from the published names and shapes alone -----------------------------------


def random_layer(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    state = {}
    for i in range(3):
        state[f"layers.{i}.conv1.weight"] = draw(256, 256, 3, 3, scale=0.02)
        state[f"layers.{i}.conv1.bias"] = draw(256)
        state[f"layers.{i}.conv2.weight"] = draw(256, 256, 3, 3, scale=0.02)
        state[f"layers.{i}.conv2.bias"] = draw(256)
        state[f"layers.{i}.conv.weight"] = draw(1, 1, 5)
    state["norm.weight"], state["norm.bias"] = 1 + draw(256, scale=0.1), draw(256, scale=0.1)
    return state


def random_vae(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, rows, columns in (
        ("enc_fc1", 128, 256),
        ("enc_fc2_mu", 64, 128),
        ("enc_fc2_logvar", 64, 128),
        ("dec_fc1", 128, 64),
        ("dec_fc2", 256, 128),
    ):
        state[f"{name}.weight"] = 0.1 * torch.randn(rows, columns, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)
    return state


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks, 43 MB, written once."""
    folder = tmp_path_factory.mktemp("written") / "official"
    for seed, (task, tau) in enumerate(TASKS.items()):
        adapter, vae = folder / "adapters_ckpt" / task, folder / "vaes_ckpt" / task
        adapter.mkdir(parents=True)
        vae.mkdir(parents=True)
        torch.save(random_layer(seed), adapter / "align_cnn_3.pth")
        torch.save(random_vae(seed), vae / "vae.pth")
        about = {f"tau_{name}": 9.0 for name in ("p95", "p97", "p99", "mean", "std", "max")}
        (vae / "tau.json").write_text(
            json.dumps(about | {"tau_suggested": tau, "k_folds": 5, "n_samples": 100 + seed})
        )
    return folder


@pytest.fixture
def tree(written: Path, tmp_path: Path) -> Path:
    """The same files as links: to spoil one, unlink it first."""
    return shutil.copytree(written, tmp_path / "official", copy_function=os.link)


def spoiled(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def layer_file(tree: Path) -> Path:
    return tree / "adapters_ckpt" / "ACDC" / "align_cnn_3.pth"


def vae_file(tree: Path) -> Path:
    return tree / "vaes_ckpt" / "ACDC" / "vae.pth"


def tau_file(tree: Path) -> Path:
    return tree / "vaes_ckpt" / "ACDC" / "tau.json"


# --- An independent second implementation -----------------------------------------------------------


def paper_layer(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Three blocks and one shared channel norm, on the authors' own names, in float64."""
    w = {name: value.double() for name, value in w.items()}
    x = x.double()
    for i in range(3):
        r = x
        for conv in ("conv1", "conv2"):
            x = F.conv2d(x.relu(), w[f"layers.{i}.{conv}.weight"], w[f"layers.{i}.{conv}.bias"], padding=1)
        means = F.pad(x.mean((2, 3)), (2, 2))
        slid = (means.unfold(1, 5, 1) * w[f"layers.{i}.conv.weight"].flatten()).sum(-1)
        x = x / (1 + torch.exp(-slid))[:, :, None, None] + r
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        x = x * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    return x


def paper_score(z_CHW: Tensor, w: dict[str, Tensor]) -> float:
    """Attention pooling, then mean squared error + 16.5 KL at the latent's mean, in float64."""
    w = {name: value.double() for name, value in w.items()}
    z_CN = z_CHW.double().flatten(1)
    strength_N = z_CN.pow(2).sum(0).sqrt() / 256
    share_N = torch.exp(strength_N) / torch.exp(strength_N).sum()
    f = z_CN @ share_N

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    hidden = gelu(linear("enc_fc1", f))
    mu, logvar = linear("enc_fc2_mu", hidden), linear("enc_fc2_logvar", hidden)
    divergence = 0.5 * (mu.pow(2) + logvar.exp() - 1 - logvar).sum()
    return float((linear("dec_fc2", gelu(linear("dec_fc1", mu))) - f).pow(2).mean() + 16.5 * divergence)


def assert_computes_the_paper(loaded: LoadedEntry, layer: dict[str, Tensor], vae: dict[str, Tensor]) -> None:
    z_BCHW = torch.randn(2, 256, 6, 7, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(loaded.layer(z_BCHW), paper_layer(z_BCHW, layer).float(), atol=1e-5, rtol=1e-5)
    assert loaded.score(z_BCHW[0]) == pytest.approx(paper_score(z_BCHW[0], vae), rel=1e-5)


# --- Import ----------------------------------------------------------------------------------------


def test_imported_entries_compute_what_the_method_says(tree: Path) -> None:
    bank = LoadedBank(read_official(tree, backbone=VIT_B), "digest")
    for seed, task in enumerate(TASKS):
        assert_computes_the_paper(bank[task], random_layer(seed), random_vae(seed))


def test_provenance_says_what_the_files_say_and_no_more(tree: Path) -> None:
    entries = read_official(tree, backbone=VIT_B)
    assert [entry.task for entry in entries] == ["56Nx", "ACDC", "EBHI-SEG"]
    for stage, entry in enumerate(entries, 1):
        about = entry.provenance
        assert entry.threshold == TASKS[entry.task]
        assert (about.form, about.router, about.features, about.beta) == ("casam", "vae", "attention", 16.5)
        assert (about.stage, about.holders, about.backbone) == (stage, (), VIT_B)
        assert about.images == 100 + list(TASKS).index(entry.task)
        assert not about.sampled
        assert faults_of(entry, tree) == []


def test_the_order_of_tasks_can_be_said(tree: Path) -> None:
    entries = read_official(tree, backbone=VIT_B, order=list(TASKS))
    assert [(entry.task, entry.provenance.stage) for entry in entries] == [
        ("ACDC", 1),
        ("EBHI-SEG", 2),
        ("56Nx", 3),
    ]
    for order in (["ACDC"], [*TASKS, "ACDC"], [*TASKS, "DN"]):
        with pytest.raises(BankError, match="order: expected each of 56Nx, ACDC, EBHI-SEG once"):
            read_official(tree, backbone=VIT_B, order=order)


def test_a_tau_without_a_count_leaves_the_images_unknown(tree: Path) -> None:
    spoiled(tau_file(tree), b'{"tau_suggested": 0.1}')
    entry = read_official(tree, backbone=VIT_B)[1]
    assert entry.provenance.images == 0
    assert faults_of(entry, tree) == []


# --- Round trip ------------------------------------------------------------------------------------


def test_export_and_import_give_the_same_bank(tree: Path, tmp_path: Path) -> None:
    order = list(TASKS)
    first = write_bank(
        tmp_path / "bank", (e.to_bytes() for e in read_official(tree, backbone=VIT_B, order=order))
    )
    write_official(first, tmp_path / "again", backbone=VIT_B)
    second = read_official(tmp_path / "again", backbone=VIT_B, order=order)
    assert [entry.to_bytes() for entry in second] == [first.bytes_of(task) for task in order]


def test_weights_that_were_saved_as_parameters_are_the_same_weights(tree: Path) -> None:
    before = [entry.to_bytes() for entry in read_official(tree, backbone=VIT_B)]
    edit(layer_file, lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()})(tree)
    assert [entry.to_bytes() for entry in read_official(tree, backbone=VIT_B)] == before


def test_exported_files_hold_the_authors_names_and_only_known_fields(tree: Path, tmp_path: Path) -> None:
    write_official(read_official(tree, backbone=VIT_B), tmp_path / "again", backbone=VIT_B)
    for path in (layer_file, vae_file):
        old, new = (torch.load(path(root), weights_only=True) for root in (tree, tmp_path / "again"))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert json.loads(tau_file(tmp_path / "again").read_text()) == {"tau_suggested": 0.0664, "n_samples": 100}


# --- Refusals --------------------------------------------------------------------------------------

Spoil = Callable[[Path], object]


def edit(path: Callable[[Path], Path], change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Load a checkpoint of the tree, change its state, save it."""

    def spoil(tree: Path) -> None:
        state = torch.load(path(tree), weights_only=True)
        path(tree).unlink()
        torch.save(change(state), path(tree))

    return spoil


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda state: state | {name: value}


def tau(text: str) -> Spoil:
    return lambda tree: spoiled(tau_file(tree), text.encode())


SPOILED: list[tuple[Spoil, str]] = [
    (edit(layer_file, drop("layers.1.conv.weight")), "missing layers.1.conv.weight"),
    (edit(layer_file, drop("norm.bias")), "missing norm.bias"),
    (edit(layer_file, put("layers.3.conv1.bias", torch.zeros(256))), "unexpected layers.3.conv1.bias"),
    (edit(layer_file, put("norm.bias", torch.zeros(128))), "norm.bias: expected shape (256,), found (128,)"),
    (edit(layer_file, put("norm.bias", torch.zeros(256).half())), "expected a float32 tensor"),
    (edit(layer_file, put("norm.bias", torch.zeros(256).to_sparse())), "found torch.sparse_coo"),
    (edit(layer_file, put("norm.bias", 3)), "norm.bias: expected a float32 tensor, found int"),
    (edit(layer_file, put("norm.bias", torch.full((256,), torch.nan))), "norm.bias: expected finite values"),
    (edit(layer_file, lambda s: {f"module.{k}": v for k, v in s.items()}), "DataParallel"),
    (edit(layer_file, lambda s: {"state_dict": s}), "unexpected state_dict"),
    (edit(layer_file, lambda s: list(s.values())), "expected tensors by name, found list"),
    (edit(vae_file, drop("enc_fc2_logvar.weight")), "missing enc_fc2_logvar.weight"),
    (
        edit(vae_file, put("dec_fc2.weight", torch.zeros(128, 256))),
        "dec_fc2.weight: expected shape (256, 128)",
    ),
    (lambda tree: spoiled(layer_file(tree), b"not weights"), "expected a plain weights file"),
    (lambda tree: spoiled(layer_file(tree), layer_file(tree).read_bytes()[:999]), "plain weights file"),
    (lambda tree: layer_file(tree).unlink(), "is missing"),
    (lambda tree: tau_file(tree).unlink(), "is missing"),
    (tau('{"tau_p97": 0.1, "tau_max": 0.2}'), "expected the field tau_suggested, found tau_p97, tau_max"),
    (tau("{}"), "expected the field tau_suggested, found no field"),
    (tau("[0.1]"), "found list"),
    (tau("0.1"), "found float"),
    (tau("{"), "expected JSON"),
    (tau('{"tau_suggested": null}'), "expected a finite number, found None"),
    (tau('{"tau_suggested": true}'), "expected a finite number, found True"),
    (tau('{"tau_suggested": NaN}'), "expected a finite number, found nan"),
    (tau(f'{{"tau_suggested": {10**400}}}'), "expected a finite number, found 1000"),
    (tau('{"tau_suggested": "0.1"}'), "expected a finite number, found '0.1'"),
    (tau('{"tau_suggested": 0.1, "n_samples": -1}'), "n_samples"),
    (lambda tree: (tree / "adapters_ckpt" / "DN").mkdir(), "only one of the two for DN"),
    (lambda tree: (tree / "vaes_ckpt").rename(tree / "vaes"), "found no vaes_ckpt/"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILED, ids=[words for _, words in SPOILED])
def test_a_file_that_is_not_the_authors_is_refused_by_name(tree: Path, spoil: Spoil, words: str) -> None:
    spoil(tree)
    with pytest.raises(BankError, match=re.escape(words)) as refusal:
        read_official(tree, backbone=VIT_B)
    assert "\n" not in str(refusal.value)
    assert str(tree) in str(refusal.value)


class Attack:
    """Pickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_code_inside_a_checkpoint_does_not_run(tree: Path, tmp_path: Path, plain_pickle: bool) -> None:
    if plain_pickle:
        spoiled(layer_file(tree), pickle.dumps(Attack(tmp_path / "owned"), protocol=2))
    else:
        layer_file(tree).unlink()
        torch.save({"norm.bias": Attack(tmp_path / "owned")}, layer_file(tree))
    with pytest.raises(BankError, match="plain weights file"):
        read_official(tree, backbone=VIT_B)
    assert not (tmp_path / "owned").exists()


def test_folders_without_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapters_ckpt" / ".cache").mkdir(parents=True)
    (tmp_path / "vaes_ckpt").mkdir()
    with pytest.raises(BankError, match="found none"):
        official_tasks(tmp_path)


@pytest.fixture(scope="module")
def entry() -> Entry:
    """An importable entry without a tree on disk."""
    layer = {
        name.replace(".conv.", ".attention.conv."): np.zeros(shape, np.float32)
        for name, shape in LAYER_SHAPES.items()
    }
    about = Provenance("casam", 8, "vae", "attention", 16.5, False, VIT_B, ("north",), 4, 1, "0" * 64)
    return Entry("ACDC", layer, {n: np.zeros(s, np.float32) for n, s in VAE_SHAPES.items()}, 0.1, about)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "residual"}, "form: expected casam, found residual"),
        ({"router": "gaussian"}, "router: expected vae, found gaussian"),
        ({"features": "moments"}, "features: expected attention, found moments"),
        ({"beta": 1.0}, "beta: expected 16.5, found 1.0"),
        ({"backbone": "f" * 64}, f"backbone: expected {VIT_B}, found {'f' * 64}"),
    ],
)
def test_entries_the_authors_code_could_not_read_are_refused(
    entry: Entry, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    odd = replace(entry, task="DN", provenance=replace(entry.provenance, **change))
    with pytest.raises(BankError, match=re.escape(words)) as refusal:
        write_official([entry, odd], tmp_path / "out", backbone=VIT_B)
    assert "'DN'" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_odd_weights_names_and_thresholds_are_not_exported(entry: Entry, tmp_path: Path) -> None:
    for odd in (
        replace(entry, layer={**entry.layer, "norm.bias": np.zeros(32, np.float32)}),
        replace(entry, router={}),
        replace(entry, task="../DN"),
        replace(entry, threshold=float("inf")),
    ):
        with pytest.raises(BankError, match="cannot be written"):
            write_official([odd], tmp_path / "out", backbone=VIT_B)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BankError, match="exists already"):
        write_official([entry], tmp_path / "out", backbone=VIT_B)
    assert list((tmp_path / "out").iterdir()) == []


# --- The authors' own files ------------------------------------------------------------------------


@pytest.mark.skipif(
    "CASAM_OFFICIAL_DIR" not in os.environ,
    reason="CASAM_OFFICIAL_DIR does not name a folder with the authors' adapters_ckpt/ and vaes_ckpt/",
)
def test_the_authors_own_files(tmp_path: Path) -> None:
    folder = Path(os.environ["CASAM_OFFICIAL_DIR"])
    entries = read_official(folder, backbone=VIT_B)
    for entry in entries:
        layer, vae = (
            torch.load(path, map_location="cpu", weights_only=True)
            for path in (
                folder / "adapters_ckpt" / entry.task / "align_cnn_3.pth",
                folder / "vaes_ckpt" / entry.task / "vae.pth",
            )
        )
        assert_computes_the_paper(LoadedEntry.of(entry), layer, vae)
    bank = write_bank(tmp_path / "bank", (entry.to_bytes() for entry in entries))
    write_official(Bank.open(bank.folder), tmp_path / "again", backbone=VIT_B)
    again = read_official(tmp_path / "again", backbone=VIT_B)
    assert [entry.to_bytes() for entry in again] == [entry.to_bytes() for entry in entries]
