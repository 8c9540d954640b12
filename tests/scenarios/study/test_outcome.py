"""From runs to an answer: tables and intervals by hand, verdicts that follow, nothing read from private/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scenarios.study.differences import difference_rows, summary_rows
from scenarios.study.frames import run_rows, site_rows
from scenarios.study.outcome import write_results
from scenarios.study.study import Plan, plan_study
from tests.scenarios.report.making import scenario_of, summary_of
from tests.scenarios.study.test_study import study_file

SITES = {"north": "polyp", "west": "histology"}


def estimate(mean: float, sd: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "sd": sd, "low": mean - 0.1, "high": mean + 0.1}


def summary(iou: dict[str, float]) -> dict[str, Any]:
    """summary.json of a run in which each institution has this IoU on its task; frozen SAM has 0.5."""
    last = sum(iou.values()) / len(iou)
    changes = {
        "tasks": list(SITES.values()), "holders": {"polyp": ["north"], "histology": []},
        "last_iou": last, "avg_iou": last, "ff_iou": 0.0, "bwt_iou": 0.0, "trained_parameters": 10,
        "zero_shot": {"iou": {"polyp": 0.5, "histology": 0.5}},
        "worst_institution_iou": {SITES[name]: value for name, value in iou.items()},
        "unseen": {"tasks": [], "zero_shot": {}, "iou": [{}, {}], "unknown_rate": [{}, {}]},
        "routing": {
            "accuracy": 1.0, "confusion": None, "false_unknown_rate": 0.0, "unseen_unknown_rate": None
        },
        "privacy": {
            name: {"policy": {}, "epsilon_train": None, "epsilon_metrics": None, "refusals": {"x": 2}}
            for name in iou
        },
        "bytes": {"up": dict.fromkeys(iou, 100), "down": dict.fromkeys(iou, 50)},
        "timing": {"seconds": 1.0, "stages": []},
        "statistics": {
            name: {SITES[name]: {"units": 16, "iou": estimate(value), "gain": estimate(value - 0.5)}}
            for name, value in iou.items()
        },
    }  # fmt: skip
    return summary_of(scenario_of(), **changes)


COST = {"north": 0.0, "west": -0.2}
"""What the closed policy changes for each institution, under every seed but for a little."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two policies under three seeds."""
    return plan_study(study_file(tmp_path, axes={}, seeds=[0, 1, 2]), with_data=False)


@pytest.fixture
def folder(tmp_path: Path, plan: Plan) -> Path:
    """The study's folder with a run for every cell."""
    for cell in plan.cells:
        base = {"north": 0.7 + 0.05 * cell.seed, "west": 0.8 - 0.05 * cell.seed}
        if cell.labels["policy"] == "closed":
            base = {name: value + COST[name] * (1 + 0.01 * cell.seed) for name, value in base.items()}
        target = tmp_path / "study" / "runs" / cell.name
        (target / "institutions" / "north" / "private").mkdir(parents=True)
        (target / "summary.json").write_text(json.dumps(summary(base)))
    return tmp_path / "study"


def differences(plan: Plan, folder: Path) -> pd.DataFrame:
    runs, sites = run_rows(plan, folder / "runs", {}), site_rows(plan, folder / "runs")
    return difference_rows(plan.study, runs, sites)


def test_a_row_per_run_with_its_figures_by_hand(plan: Plan, folder: Path) -> None:
    runs = run_rows(plan, folder / "runs", {}).set_index("cell")
    row = runs.loc["open_seed-1"]
    assert row["last_iou"] == pytest.approx(0.75)  # (0.75 + 0.75) / 2
    assert row["gain_iou"] == pytest.approx(0.25)  # over frozen SAM's 0.5
    assert row["worst_iou"] == pytest.approx(0.75)
    assert (row["bytes_up"], row["refusals"], row["status"]) == (200, 4, "finished")
    assert np.isnan(row["unseen_iou"])
    assert np.isnan(row["epsilon_train"])


def test_a_cell_without_a_run_is_a_row_that_says_why(plan: Plan, tmp_path: Path) -> None:
    runs = run_rows(plan, tmp_path / "none", {"open_seed-0": "no disk left"}).set_index("cell")
    assert tuple(runs.loc["open_seed-0", ["status", "reason"]]) == ("failed", "no disk left")
    assert tuple(runs.loc["open_seed-1", ["status", "reason"]]) == ("missing", "")


def test_a_row_per_institution_and_task(plan: Plan, folder: Path) -> None:
    sites = site_rows(plan, folder / "runs")
    assert len(sites) == 6 * 2
    row = sites[(sites["cell"] == "closed_seed-0") & (sites["institution"] == "west")].iloc[0]
    assert (row["task"], row["learned"], row["trained"], row["units"]) == ("histology", True, False, 16)
    assert row["gain_mean"] == pytest.approx(0.8 - 0.2 - 0.5)


def test_means_over_seeds_with_their_interval_by_hand(plan: Plan, folder: Path) -> None:
    runs = run_rows(plan, folder / "runs", {})
    rows = summary_rows(plan.study, runs).set_index(["policy", "figure"])
    worst = rows.loc[("open", "worst_iou")]  # 0.7, 0.75, 0.7
    assert worst["mean"] == pytest.approx(2.15 / 3)
    half = 4.302653 * np.std([0.7, 0.75, 0.7], ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert worst["high"] - worst["mean"] == pytest.approx(half)


def test_a_difference_is_paired_by_seed_so_that_what_seeds_do_to_both_is_gone(
    plan: Plan, folder: Path
) -> None:
    found = differences(plan, folder)
    west = found[(found["scope"] == "institution") & (found["institution"] == "west")].iloc[0]
    changes = [-0.2, -0.202, -0.204]
    assert west["difference"] == pytest.approx(np.mean(changes))
    half = 4.302653 * np.std(changes, ddof=1) / np.sqrt(3)
    assert (west["low"], west["high"]) == (
        pytest.approx(np.mean(changes) - half),
        pytest.approx(np.mean(changes) + half),
    )
    # Its own statistics: deviations 0.1 and 0.1 of 16 units, whatever their correlation; t of 15 degrees.
    assert west["own_high"] - west["difference"] == pytest.approx(2.131450 * 0.2 / 4)


def change(folder: Path, policy: str, **changes: Any) -> None:
    """Write other figures into all runs of a policy."""
    for path in folder.glob(f"runs/{policy}_*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def west_of(plan: Plan, folder: Path) -> pd.Series:
    """What the closed policy changes for the institution west, by its own images."""
    return differences(plan, folder).set_index("institution").loc["west"]


def test_an_institution_s_interval_counts_the_fewer_images_of_two_runs(plan: Plan, folder: Path) -> None:
    few = {"histology": {"units": 4, "iou": estimate(0.8), "gain": estimate(0.3)}}
    many = {"histology": {"units": 100, "iou": estimate(0.6), "gain": estimate(0.1)}}
    change(folder, "open", statistics={"west": few})
    change(folder, "closed", statistics={"west": many})
    west = west_of(plan, folder)
    assert west["own_high"] - west["difference"] == pytest.approx(3.182446 * 0.2 / 2)  # t of 3 degrees


def test_an_institution_s_interval_is_of_scores_where_frozen_sam_scores_otherwise(
    plan: Plan, folder: Path
) -> None:
    """Another backbone or prompt: 0.8 is 0.1 better than 0.7, though both gain 0.2 over their frozen SAM."""
    one, other = ({"units": 16, "iou": estimate(iou), "gain": estimate(0.2)} for iou in (0.7, 0.8))
    change(folder, "open", statistics={"west": {"histology": one}})
    change(folder, "closed", statistics={"west": {"histology": other}})
    west = west_of(plan, folder)
    assert (west["own_low"] + west["own_high"]) / 2 == pytest.approx(west["difference"]) == pytest.approx(0.1)


def test_a_task_that_nobody_tells_of_makes_no_other_one_the_worst_or_the_mean(
    plan: Plan, folder: Path
) -> None:
    """Who keeps the scores of an unseen task to itself took the lowest score out of the study."""
    unseen = {"tasks": ["x", "y"], "zero_shot": {}, "unknown_rate": [{}]}
    worst = {"polyp": 0.7, "histology": 0.8, "x": 0.5}
    change(
        folder,
        "open",
        unseen=unseen | {"iou": [{"x": 0.5, "y": 0.2}]},
        worst_institution_iou=worst | {"y": 0.2},
    )
    change(
        folder,
        "closed",
        unseen=unseen | {"iou": [{"x": 0.5, "y": None}]},
        worst_institution_iou=worst | {"y": None},
    )
    runs = run_rows(plan, folder / "runs", {}).set_index("cell")
    assert tuple(runs.loc["open_seed-0", ["unseen_iou", "worst_iou"]]) == (0.35, 0.2)
    assert runs.loc["closed_seed-0", ["unseen_iou", "worst_iou"]].isna().all()
    assert not {"unseen_iou", "worst_iou"} & set(differences(plan, folder)["figure"])


def test_intransigence_is_against_the_joint_run_of_the_same_settings(tmp_path: Path) -> None:
    """A task has 0.6 when casam has learned it. Learned together, it has 0.7 with rank 1, 0.9 with rank 8."""
    axes = {"method": ["casam", "joint"], "alignment.rank": [1, 8]}
    plan = plan_study(
        study_file(tmp_path, axes=axes, variants={}, comparisons=[], seeds=[0]), with_data=False
    )
    for cell in plan.cells:
        learned = {"casam_1": 0.6, "casam_8": 0.6, "joint_1": 0.7, "joint_8": 0.9}[
            cell.name.removesuffix("_seed-0")
        ]
        folder = tmp_path / "runs" / cell.name
        folder.mkdir(parents=True)
        matrix = {"iou": [[learned, None], [learned, learned]]}
        content = summary({"north": learned, "west": learned}) | {"matrix": matrix}
        (folder / "summary.json").write_text(json.dumps(content))
    runs = run_rows(plan, tmp_path / "runs", {}).set_index("cell")["intransigence_iou"]
    assert runs["casam_1_seed-0"] == pytest.approx(0.1)
    assert runs["casam_8_seed-0"] == pytest.approx(0.3)
    assert (runs["joint_1_seed-0"], runs["joint_8_seed-0"]) == (0.0, 0.0)


def test_p_values_hold_for_all_institutions_together(plan: Plan, folder: Path) -> None:
    found = differences(plan, folder).set_index("institution")
    north, west = found.loc["north"], found.loc["west"]
    assert (north["p"], north["p_holm"], north["difference"]) == (1.0, 1.0, 0.0)
    assert west["p_holm"] == pytest.approx(2 * west["p"])
    assert west["p_holm"] < 0.05


def test_the_summary_says_what_it_costs_whom_and_whether_to_believe_it(plan: Plan, folder: Path) -> None:
    text = write_results(folder, plan, {})
    (line,) = [line for line in text.splitlines() if line.startswith("- **closed**")]
    assert "costs 10.1 points of mean IoU against open: significant" in line
    assert "The largest loss is at west (histology), 20.2 points: significant" in line
    assert "Significantly worse off: 1 of 2 datasets" in line
    assert "| north | polyp | 75.0 | +0.0 [+0.0, +0.0] |" in text


def test_one_seed_never_counts_as_significant(tmp_path: Path, folder: Path) -> None:
    plan = plan_study(tmp_path / "small.toml", with_data=False, seeds=[0])
    text = write_results(folder, plan, {})
    assert "one seed cannot show whether this is chance" in text
    assert ": significant" not in text


def test_tables_come_as_csv_and_parquet_alike_and_pictures_beside_them(plan: Plan, folder: Path) -> None:
    write_results(folder, plan, {})
    for name in ("results", "institutions"):
        pd.testing.assert_frame_equal(
            pd.read_csv(folder / f"{name}.csv", keep_default_na=True).convert_dtypes(),
            pd.read_parquet(folder / f"{name}.parquet").replace("", pd.NA).convert_dtypes(),
            check_dtype=False,
        )
    for name in ("policy-iou.png", "policy-institutions.png"):
        assert (folder / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_results_do_not_depend_on_when_they_are_made(plan: Plan, folder: Path) -> None:
    def made() -> dict[str, bytes]:
        write_results(folder, plan, {})
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert made() == made()


def test_nothing_is_read_from_what_institutions_keep(
    plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = Path.read_text

    def noted(self: Path, *args: Any, **kwargs: Any) -> str:
        read.append(str(self))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", noted)
    write_results(folder, plan, {})
    assert read
    assert not [path for path in read if "private" in path]


def test_a_mean_that_lacks_scores_is_compared_with_one_that_lacks_the_same(plan: Plan, folder: Path) -> None:
    """Who falls silent takes its task out of the mean: the mean changes, and the model does not."""

    def silence(policy: str) -> None:
        for cell in plan.cells:
            if cell.labels["policy"] == policy:
                path = folder / "runs" / cell.name / "summary.json"
                content = json.loads(path.read_text())
                content["matrix"] = {"iou": [[0.7, None], [0.7, None]]}
                content["complete"] = {"last_iou": False}
                content["last_iou"] = 0.7
                path.write_text(json.dumps(content))

    silence("closed")
    runs = run_rows(plan, folder / "runs", {}).set_index("cell")
    assert tuple(runs.loc[["open_seed-0", "closed_seed-0"], "scores"]) == ("all", "polyp 1 2; histology")
    assert np.isnan(runs.loc["closed_seed-0", "gain_iou"])  # frozen SAM's mean is over both tasks
    rows = differences(plan, folder)
    assert set(rows[rows["scope"] == "run"]["figure"]) == {"bytes_up"}
    assert "a mean lacks scores that open has" in write_results(folder, plan, {})
    silence("open")
    rows = differences(plan, folder)
    assert "last_iou" in set(rows[rows["scope"] == "run"]["figure"])
