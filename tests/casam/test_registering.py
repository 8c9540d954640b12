"""Parts of one's own: registered from a notebook, or by an installed package."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import casam
import casam_core.plugins
from casam_core.config.data_spec import DataSpec
from casam_core.errors import CheckpointError, ScenarioError
from casam_core.methods import METHODS
from casam_core.model.backbones import channels_of
from casam_core.model.forms.base import AlignmentLayer
from client.data.phantoms.painted import PhantomDataset
from tests.conftest import tiny_table


class Shift(AlignmentLayer):
    """One number per channel is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_C = nn.Parameter(torch.zeros(channels))

    def forward(self, z_BCHW: Any) -> Any:
        return z_BCHW + self.shift_C[:, None, None]


def test_a_form_of_ones_own_is_trained_guarded_and_kept(tmp_path: Path) -> None:
    casam.register_form("shift", casam.FormEntry(lambda _, channels, __: Shift(channels), learning_rate=1e-2))
    run = casam.run(
        tiny_table(alignment={"form": "shift"}, training={"epochs": 1, "fallback_to_identity": False}),
        out=tmp_path / "run",
    )
    bank = casam.load_bank(run.bank)
    assert {entry.entry.provenance.form for entry in bank.values()} == {"shift"}
    assert {tuple(entry.entry.layer) for entry in bank.values()} == {("shift_C",)}


def test_a_reader_of_ones_own_is_named_in_a_scenario(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"reader: expected one of 'folder', .*, found 'mine'"):
        casam.Scenario.from_dict(with_reader("mine"))

    def mine(spec: DataSpec, data_root: Path | None, seed: int, institution: str) -> PhantomDataset:
        return PhantomDataset(name="polyp", images=12, size=64, seed=seed, institution=institution)

    casam.register_reader("mine", mine)
    run = casam.run(with_reader("mine"), out=tmp_path / "run")
    assert run.summary.tasks == ["polyp"]


def with_reader(name: str) -> dict[str, Any]:
    """One institution whose data this reader opens."""
    site = {"name": "north", "data": {"polyp": {"reader": name, "path": "."}}}
    return tiny_table(stream=["polyp"], institutions=[site])


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    casam.register_method("mine", casam.Method("Ours under another name."))
    assert casam.run(tiny_table(method="mine"), out=tmp_path / "run").summary.method == "mine"


def test_a_backbone_of_ones_own_tells_its_channels() -> None:
    with pytest.raises(ScenarioError, match=r"backbone: name: expected one of 'tiny', .*, found 'mine'"):
        casam.load_backbone("mine")

    def load(spec: Any, compute: Any) -> Any:
        raise CheckpointError("it is not here")

    casam.register_backbone("mine", casam.BackboneEntry(load, channels=8))
    assert channels_of("mine") == 8
    with pytest.raises(CheckpointError, match="it is not here"):
        casam.load_backbone("mine")


def test_an_installed_package_registers_before_the_first_scenario_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(
        "import casam\ncasam.register_method('theirs', casam.Method('Theirs.'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = EntryPoint("theirs", "my_parts", casam_core.plugins.GROUP)
    monkeypatch.setattr(casam_core.plugins, "entry_points", lambda group: [plugin])
    casam_core.plugins.load_plugins.cache_clear()
    try:
        casam.Scenario.from_dict(tiny_table(method="theirs"))
        assert METHODS["theirs"].description == "Theirs."
        assert casam_core.plugins.plugin_versions() == ["theirs"]
    finally:
        casam_core.plugins.load_plugins.cache_clear()


def test_a_layer_is_trained_on_images_that_are_at_hand() -> None:
    backbone = casam.load_backbone("tiny")
    images = [np.full((64, 48, 3), 20 * k, np.uint8) for k in range(1, 4)]
    labels = [np.pad(np.ones((20, 20), np.int32), ((8, 36), (8, 20))) for _ in images]
    layers = [casam.train_layer(images, labels, backbone, epochs=2) for _ in range(2)]
    first, second = (dict(layer.named_parameters()) for layer in layers)
    assert all((first[name] == second[name]).all() for name in first)
    with pytest.raises(ValueError, match="shorter"):
        casam.train_layer(images, labels[:2], backbone)
