"""Curves of IoU over simulated clicks, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casam_bench.bench import csv_of, read_csv
from casam_bench.quality import clicks
from casam_bench.quality.clicks import WAYS, Row, curve, rows_of, tables
from casam_bench.quality.layer_page import picture_of_clicks
from casam_bench.quality.layer_seconds import Images
from casam_core.model.examples import Example
from casam_core.model.prompts import Prompts
from tests.banks import tiny_backbone
from tests.casam_bench.surroundings import surroundings


@pytest.mark.parametrize("way", WAYS)
def test_a_curve_gives_the_decoder_all_clicks_so_far(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder answers with the left half of the object, then with all of it."""
    backbone, asked = tiny_backbone(), list[Prompts]()
    true_HW = np.zeros((64, 64), bool)
    true_HW[8:40, 8:40] = True
    left_HW = true_HW.copy()
    left_HW[:, 24:] = False

    def decode(z_CHW: object, prompts: Prompts, decoder: object) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(prompts)
        seen_HW = torch.from_numpy(left_HW if len(asked) == 1 else true_HW)
        return torch.where(seen_HW, 8.0, -8.0)[None, ::2, ::2], torch.ones(1)

    monkeypatch.setattr(backbone, "decode", decode)
    found = curve(backbone, torch.zeros(32, 8, 8), None, true_HW, WAYS[way])
    boxed = WAYS[way].box
    right = found[1:] if boxed else found[2:]
    assert found[:2][not boxed] == pytest.approx(0.5, abs=0.05)
    assert all(value == pytest.approx(1, abs=0.07) for value in right)
    assert all((some.boxes_N4 is not None) == boxed for some in asked)
    assert [some.points_NP2.shape[1] if some.points_NP2 is not None else 0 for some in asked] == list(
        range(not boxed, len(asked) + (not boxed))
    )
    assert all((some.masks_Nhw is not None) == WAYS[way].mask for some in asked[1:])
    assert asked[0].masks_Nhw is None


def test_a_cell_has_a_curve_per_layer_way_image_and_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels_HW = np.zeros((64, 64), np.int32)
    labels_HW[10:40, 10:40], labels_HW[50:60, 5:60], labels_HW[2:6, 2:60] = 1, 2, 3
    example = Example(torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(0)), labels_HW)
    images = Images([example] * 2, [], [example] * (clicks.IMAGES + 1))
    monkeypatch.setattr(clicks, "images_of", lambda *arguments, **options: images)
    cell = clicks.measure(surroundings(tmp_path), tiny_backbone(), "histology", 0)
    assert list(cell) == list(clicks.LAYERS)
    for ways in cell.values():
        assert list(ways) == list(WAYS)
        assert np.shape(list(ways.values())) == (
            len(WAYS),
            clicks.IMAGES,
            clicks.INSTANCES,
            clicks.CLICKS + 1,
        )
    frozen, boxes, _ = cell.values()
    assert frozen != boxes
    again = clicks.measure(surroundings(tmp_path), tiny_backbone(), "histology", 0)
    assert again == cell


CURVES = [[[0.5, 0.6, 0.9, 0.9, 0.9, 0.9], [0.9] * 6], [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], []]
CELL: dict[str, Any] = {"frozen SAM": {"box, then clicks": CURVES}}


def test_rows_are_means_over_images_and_count_clicks(tmp_path: Path) -> None:
    (row,) = rows_of(CELL, "real", "nuclei", 0)
    assert row.instances == 3
    assert row.curve == pytest.approx([(0.7 + 0.1) / 2, (0.75 + 0.2) / 2, 0.6, 0.65, 0.7, 0.75])
    assert row.noc == pytest.approx((2 + 0 + 5) / 3, abs=1e-5)
    assert row.missed == pytest.approx(1 / 3, abs=1e-5)
    (tmp_path / "clicks.csv").write_text(csv_of(Row, [row]))
    assert read_csv(Row, tmp_path / "clicks.csv") == [row]


def test_tables_are_means_over_seeds_of_means_over_tasks() -> None:
    rows = [row for seed in (0, 1) for row in rows_of(CELL, "real", "nuclei", seed)]
    lines = tables(rows).splitlines()
    assert lines[0] == "**real tasks: 1, seeds: 2**"
    figures = "40.0 | 47.5 | 60.0 | 65.0 | 70.0 | 75.0 | +35.0 ± 0.0 | 2.33 | 33 %"
    assert lines[-1] == f"| frozen SAM | box, then clicks | {figures} |"
    assert picture_of_clicks(rows).startswith("<svg")
