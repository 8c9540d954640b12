"""The tables of studies follow from the runs, paired by seed; no cell has fewer than five seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from casam_bench.quality.layer_page import DOCS, filled
from casam_core.errors import RunInputError
from scenarios.export.paper_page import finished
from scenarios.export.studies_page import PARTS, orders_part, policies_part, sites_part

BASE = [0.70, 0.72, 0.74, 0.76, 0.78]
KINDS = ("equal", "labels")


def rows_of(strategies: dict[str, list[float]], kinds: tuple[str, ...] = KINDS) -> pd.DataFrame:
    """A run per kind, strategy and seed."""
    return pd.DataFrame(
        [
            {
                "sites": kind,
                "strategy": strategy,
                "seed": seed,
                "last_iou": value,
                "worst_iou": value - 0.1,
                "personal_gain": 0.02 if strategy == "fedavg" else float("nan"),
            }
            for kind in kinds
            for strategy, values in strategies.items()
            for seed, value in enumerate(values)
        ]
    )


def lines_of(text: str, strategy: str) -> list[str]:
    """All rows of a strategy."""
    return [line for line in text.splitlines() if line.startswith(f"| {strategy} |")]


def test_means_differences_and_personal_gain_by_hand() -> None:
    worse = [value - lost for value, lost in zip(BASE, (0.09, 0.10, 0.11, 0.10, 0.10), strict=True)]
    text = sites_part(rows_of({"fedavg": BASE, "krum": worse}))
    of_base, of_krum = lines_of(text, "fedavg"), lines_of(text, "krum")
    assert of_base[0].count("74.0 ± 3.9") == len(KINDS)
    assert of_base[1].count("64.0 ± 3.9") == len(KINDS)  # the worst site
    assert of_base[2].count("2.0 ± 0.0") == len(KINDS)  # personal entries
    assert of_krum[1].count("**-10.0 ± 0.9 (p < 0.001)**") == len(KINDS)


def test_a_strategy_with_four_seeds_is_not_shown() -> None:
    text = sites_part(rows_of({"fedavg": BASE, "krum": BASE[:4]}))
    assert lines_of(text, "fedavg")
    assert not lines_of(text, "krum")


def test_another_studys_folder_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"status": ["finished"], "method": ["casam"]}).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(RunInputError, match="expected the study heterogeneity, found no column sites"):
        finished(tmp_path, "heterogeneity", ["sites"])


@pytest.mark.parametrize("study", PARTS)
def test_the_page_shows_what_the_csv_files_say(study: str) -> None:
    part = PARTS[study][1](pd.read_csv(DOCS / "figures" / f"{study}.csv"))
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert filled(page, study, part) == page


def test_orders_are_compared_by_seed_and_forgetting_is_in_points() -> None:
    rows = pd.DataFrame(
        [
            {
                "orders": orders,
                "method": "lwf",
                "seed": seed,
                "last_iou": iou + up,
                "site_ff_iou": ff + seed,
            }
            for orders, up, ff in (("one", 0.0, 5.0), ("own", 0.02, 1.0))
            for seed, iou in enumerate(BASE)
        ]
    )
    text = orders_part(rows)
    means, differences = lines_of(text, "lwf")
    assert means == "| lwf | 74.0 ± 3.9 | 76.0 ± 3.9 | 7.0 ± 2.0 | 3.0 ± 2.0 |"
    assert differences == "| lwf | **+2.0 ± 0.0 (p < 0.001)** | **-4.0 ± 0.0 (p < 0.001)** |"


def test_policies_are_compared_with_open_runs_for_each_kind_of_data() -> None:
    rows = pd.DataFrame(
        [
            {
                "data": data,
                "policy": policy,
                "seed": seed,
                "gain_iou": gain + seed / 100,
                "false_unknown_rate": lost,
            }
            for data in ("phantoms", "nuclei")
            for policy, gain, lost in (("open", 0.10, 0.01), ("dp-8", 0.06, 0.03), ("never-share", 0.0, None))
            for seed in range(5 if data == "phantoms" else 4)
        ]
    )
    text = policies_part(rows)
    means, differences = lines_of(text, "dp-8")
    assert means == "| dp-8 | 8.0 ± 2.0 | 3.0 ± 0.0 |"
    assert differences == "| dp-8 | **-4.0 ± 0.0 (p < 0.001)** |"
    assert lines_of(text, "never-share")[0] == "| never-share | 2.0 ± 2.0 | - |"  # nobody has an entry
    assert "nuclei" not in text
