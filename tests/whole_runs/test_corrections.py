"""The correction of SAM's estimates, from an institution's validation images to the printed estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import Scenario
from casam_core.model import validation
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.protocol.audit import read_log
from casam_use.loaded_bank import LoadedBank, load_bank
from casam_use.segmenter import Segmenter
from client import institution
from client.data.phantoms import PHANTOMS
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table, with_policies

BOX = (8, 8, 40, 40)
NOISY = {"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 0.05}}


def bank_of(folder: Path, policy: dict[str, Any]) -> Path:
    """The bank of a run in which north, the only holder of polyp, has this policy."""
    training = {"epochs": 1, "batch_images": 4, "keep_best": True, "fallback_to_identity": False}
    table = with_policies(tiny_table(stream=["polyp"], training=training), north=policy)
    table["institutions"] = table["institutions"][:1]
    run_inprocess(Scenario.model_validate(table), folder, None)
    return folder / "bank"


def test_it_is_told_logged_kept_and_added_to_what_predict_prints(tmp_path: Path) -> None:
    path = bank_of(tmp_path / "run", {})
    correction = Bank.open(path)["polyp"].correction
    assert correction is not None
    assert correction == round(correction, 2)
    logs = read_log(tmp_path / "run" / "institutions" / "north" / "private" / "audit.jsonl")
    (released,) = (line.release for line in logs if line.release.kind == "train.align")
    assert "estimate 1 numbers" in released.records
    bank, image_HW3 = load_bank(path), PHANTOMS["polyp"](np.random.default_rng(0), 64).image_HW3
    untold = LoadedBank([replace(loaded.entry, correction=None) for loaded in bank.values()], "digest")
    backbone = load_tiny(BackboneSpec(name="tiny"), Compute("cpu", 1, "float32"))
    with_it, without = (
        float(Segmenter(backbone, known).predict(image_HW3, [BOX], task="polyp").iou_N[0])
        for known in (bank, untold)
    )
    assert with_it == pytest.approx(min(max(without + correction, 0), 1), abs=1e-6)


def test_a_holder_whose_figures_need_noise_tells_none(tmp_path: Path) -> None:
    assert Bank.open(bank_of(tmp_path / "run", NOISY))["polyp"].correction is None


def test_epochs_are_compared_on_few_instances_and_the_last_test_uses_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image's gain over few of its instances says little; epochs are many and only need an order."""
    asked: list[int] = []

    def recording(examples: Any, backbone: Any, spec: Any, rng: Any) -> Any:
        asked.append(spec.instances)
        return validation.validator(examples, backbone, spec, rng)

    monkeypatch.setattr(institution, "validator", recording)
    bank_of(tmp_path / "run", {})
    assert asked == [4, validation.TESTED_INSTANCES]
