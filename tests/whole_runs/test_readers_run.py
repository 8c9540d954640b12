"""A whole run, in one process, on data that come through the readers of medical formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from casam_core.config.scenario import Scenario
from client.data.phantoms.painted import PhantomDataset
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.preflight import preflight
from tests.client.data.readers import test_med_datasets, test_nifti
from tests.conftest import phantom, tiny_table


def spleen_volumes(root: Path) -> Path:
    """Four volumes of three slices each."""
    drawn = PhantomDataset("spleen_ct", images=12, size=64, seed=0, institution="x")
    for number in range(4):
        slices = [drawn.load(sample) for sample in drawn.samples[3 * number : 3 * number + 3]]
        voxels = np.stack([s.image_HW3[..., 0].T.astype(np.int16) * 8 - 1000 for s in slices], -1)
        mask = np.stack([s.labels_HW.T.astype(np.uint8) for s in slices], -1)
        test_nifti.put(root, f"case{number}", voxels, mask)
    return root


def test_a_run_on_volumes_and_on_the_authors_layout(tmp_path: Path) -> None:
    spleen_volumes(tmp_path / "spleen")
    test_med_datasets.tiny(tmp_path / "TINY")
    north: dict[str, Any] = {"spleen": {"reader": "nifti", "path": "spleen", "window": [0, 2000]}}
    south = {"ring": {"reader": "med_datasets", "path": "TINY"}, "polyp": phantom("polyp", 6)}
    table = tiny_table(
        stream=["spleen", "ring"],
        institutions=[{"name": "north", "data": north}, {"name": "south", "data": south}],
    )
    scenario = Scenario.model_validate(table)
    preflight(scenario, tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    run_inprocess(scenario, out, tmp_path)
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["last_iou"] <= 1
    answer = preflight(Scenario.model_validate_json(scenario.canonical_json()), tmp_path)
    assert answer.encodes > 0, "the resolved scenario is read back with every reader's options"
