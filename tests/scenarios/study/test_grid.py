"""`casam study`: what is missing is run, failures stay alone, and a folder belongs to one study."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from casam_core.config.scenario import Scenario
from casam_core.errors import CasamError, RunError
from casam_core.files import lock_file
from scenarios.ask.remembering import scores_shared
from scenarios.engines.inprocess import run_inprocess
from scenarios.study.cell import ABANDONED, CellEnd, CellOrder, LocalCells, execute
from scenarios.study.differences import COLUMNS
from scenarios.study.grid import Setting, claim, costs, estimate, finished, run_cells
from scenarios.study.outcome import write_results
from scenarios.study.study import Cell, Plan, plan_study
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.scenarios.report.making import scenario_of, summary_of
from tests.scenarios.study.test_study import study_file

TWO = {"axes": {}, "seeds": [0], "set": {}}
"""The small study with two cells: open and closed under one seed."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Four cells."""
    return plan_study(study_file(tmp_path, axes={}), with_data=False)


class FakeCells:
    """Stands in for processes: writes summaries, fails where told, remembers the most at one time."""

    def __init__(self, plan: Plan, broken: str = "", wait: float = 0.0) -> None:
        self.digests = {cell.name: cell.scenario.digest() for cell in plan.cells}
        self.asked: list[str] = []
        self.broken, self.wait = broken, wait
        self.most = self.now = 0
        self.stopped = False
        self.lock = threading.Lock()

    def run(self, order: CellOrder) -> CellEnd:
        with self.lock:
            self.asked.append(order.name)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.wait)
        with self.lock:
            self.now -= 1
        if order.name == self.broken:
            return CellEnd(order.name, "the run failed: no disk left", 0.1)
        Path(order.folder).mkdir(parents=True)
        summary = summary_of(scenario_of(), scenario_digest=self.digests[order.name])
        (Path(order.folder) / "summary.json").write_text(json.dumps(summary))
        return CellEnd(order.name, "", 0.1)

    def stop(self) -> None:
        self.stopped = True


def run(setting: Setting, plan: Plan, where: FakeCells, jobs: int = 1) -> dict[str, str]:
    claim(setting, plan, "small.toml")
    left = [cell for cell in plan.cells if not finished(setting, cell)]
    return run_cells(setting, left, jobs, where, lambda cell: None, lambda cell, end: None)


def test_a_failure_stops_no_other_cell_and_is_tried_again_next_time(tmp_path: Path, plan: Plan) -> None:
    setting = Setting(tmp_path / "study", None)
    assert run(setting, plan, FakeCells(plan, broken="open_seed-1")) == {
        "open_seed-1": "the run failed: no disk left"
    }
    assert [cell.name for cell in plan.cells if finished(setting, cell)] == [
        "open_seed-0", "closed_seed-0", "closed_seed-1",
    ]  # fmt: skip
    again = FakeCells(plan)
    assert run(setting, plan, again) == {}
    assert again.asked == ["open_seed-1"]


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path: Path, plan: Plan) -> None:
    setting = Setting(tmp_path / "study", None)
    torn = setting.run_folder(plan.cells[0])
    torn.mkdir(parents=True)
    (torn / "events.jsonl").write_text("{}\n")
    claim_empty = tmp_path / "study" / "study.json"
    claim_empty.write_text(json.dumps({"data_root": None, "code": "x", "study": {"name": "small"}}))
    with pytest.raises(RunError, match="another version of the code"):
        run(setting, plan, FakeCells(plan))
    claim_empty.unlink()
    with pytest.raises(RunError, match="expected a new or empty folder"):
        run(setting, plan, FakeCells(plan))
    (tmp_path / "study").rename(tmp_path / "other")
    run(setting, plan, FakeCells(plan, broken="open_seed-0"))
    torn.mkdir(parents=True)
    (torn / "events.jsonl").write_text("{}\n")
    run(setting, plan, FakeCells(plan))
    assert not (torn / "events.jsonl").exists()


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_cells_run_at_a_time_as_wanted(tmp_path: Path, plan: Plan, jobs: int) -> None:
    where = FakeCells(plan, wait=0.1)
    run(Setting(tmp_path / "study", None), plan, where, jobs)
    assert where.most == jobs


def test_an_interrupt_ends_the_cells_under_way(tmp_path: Path, plan: Plan) -> None:
    setting, where = Setting(tmp_path / "study", None), FakeCells(plan)
    claim(setting, plan, "small.toml")

    def interrupt(cell: Cell, end: CellEnd) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(setting, plan.cells, 1, where, lambda cell: None, interrupt)
    assert where.stopped
    assert where.asked == ["open_seed-0"]


def test_a_folder_holds_one_study_of_one_data_folder(tmp_path: Path, plan: Plan) -> None:
    setting = Setting(tmp_path / "study", None)
    run(setting, plan, FakeCells(plan))
    with pytest.raises(RunError, match="another data folder"):
        claim(Setting(tmp_path / "study", tmp_path), plan, "small.toml")
    other = plan_study(study_file(tmp_path, axes={}, name="other"), with_data=False)
    with pytest.raises(RunError, match="holds the study 'small'"):
        claim(setting, other, "small.toml")
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        claim(setting, plan, "small.toml")
    changed = plan_study(study_file(tmp_path, axes={}, set={"training": {"epochs": 3}}), with_data=False)
    with pytest.raises(RunError, match="a run of another scenario than this study"):
        finished(setting, changed.cells[0])


def test_more_seeds_join_what_is_there(tmp_path: Path, plan: Plan) -> None:
    setting = Setting(tmp_path / "study", None)
    run(setting, plan, FakeCells(plan))
    more = plan_study(study_file(tmp_path, axes={}, seeds=[0, 1, 2]), with_data=False)
    where = FakeCells(more)
    run(setting, more, where)
    assert where.asked == ["open_seed-2", "closed_seed-2"]


def test_two_processes_in_one_folder_delete_nothing_of_each_other(tmp_path: Path, plan: Plan) -> None:
    """Both began with a list of four missing cells; meanwhile the other one ended two, and runs the third."""
    setting, second = Setting(tmp_path / "study", None), FakeCells(plan)
    claim(setting, plan, "small.toml")
    run_cells(setting, plan.cells[:2], 1, FakeCells(plan), lambda cell: None, lambda cell, end: None)
    under_way = setting.run_folder(plan.cells[2]) / "events.jsonl"
    under_way.parent.mkdir()
    under_way.touch()
    with (
        lock_file(Path(setting.order(plan.cells[2]).log)),
        pytest.raises(RunError, match="closed_seed-0: another process runs it now"),
    ):
        run_cells(setting, plan.cells, 1, second, lambda cell: None, lambda cell, end: None)
    assert second.asked == []
    assert under_way.exists()


def test_an_image_is_counted_where_it_is_encoded_first(tmp_path: Path, plan: Plan) -> None:
    found = costs(plan.cells, None, lambda name: None)
    # Four datasets of 12 phantoms; another seed draws others, another policy does not.
    assert {name: cost.encodes for name, cost in found.items()} == {
        "open_seed-0": 48, "open_seed-1": 48, "closed_seed-0": 0, "closed_seed-1": 0,
    }  # fmt: skip


def test_the_estimate_shares_work_but_no_single_run() -> None:
    class OneMinute:
        def seconds(self, cost: Any) -> float:
            return float(cost)

    work: Any = [(seconds, OneMinute()) for seconds in (60, 60, 60, 240)]
    assert estimate(work, 1) == 7
    assert estimate(work, 2) == 4  # the long one alone
    assert estimate(work[:3], 2) == 1.5


def order_of(study: Path, plan: Plan, **changes: Any) -> CellOrder:
    for part in ("runs", "logs"):
        (study / part).mkdir(parents=True, exist_ok=True)
    return CellOrder(**asdict(Setting(study, None).order(plan.cells[0])) | changes)


def test_a_cell_of_other_code_is_refused(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(RunError, match="the study runs 0123456789abcdef"):
        execute(order_of(tmp_path / "study", plan, code="0123456789abcdef"))


def test_a_folder_that_another_machine_cannot_see_is_a_reason(tmp_path: Path, plan: Plan) -> None:
    order = order_of(tmp_path / "study", plan, folder=str(tmp_path / "elsewhere" / "runs" / "x"))
    assert "share the study's folder" in LocalCells().run(order).reason


@pytest.mark.slow
def test_a_process_whose_study_is_gone_ends(tmp_path: Path, plan: Plan) -> None:
    order = order_of(tmp_path / "study", plan)
    process = subprocess.Popen(
        [sys.executable, "-m", "scenarios.study.cell"], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(order)) + "\n")
    process.stdin.close()
    assert process.wait(timeout=120) == ABANDONED
    assert not (Path(order.folder) / "summary.json").exists()


class CellsHere:
    """Stands in for processes: cells run in this one, one after the other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def run(self, order: CellOrder) -> CellEnd:
        with self.lock:
            try:
                execute(order)
            except CasamError as error:
                return CellEnd(order.name, str(error), 0.1)
        return CellEnd(order.name, "", 0.1)

    def stop(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes."""
    monkeypatch.setattr("scenarios.study.cell.LocalCells", CellsHere)
    monkeypatch.setattr("scenarios.study.pace.start_process", lambda: None)


@pytest.mark.usefixtures("here")
def test_a_study_from_the_command_line_runs_fails_shows_and_resumes(tmp_path: Path, casam: Casam) -> None:
    broken = {"set": {"training.rounds": 2, "institutions.*.policy.max_rounds": 0, "backbone.name": "vit_b"}}
    path = study_file(tmp_path, **TWO | {"variants": {"policy": {"open": {}, "broken": broken}}})
    result = casam("study", path, "--out", "out")
    assert result.status == 2, "a cell without its checkpoint is known before anything runs"
    assert "checkpoint" in result.err
    assert not (tmp_path / "out").exists()

    # One institution's layer has no number any more: found out only by running.
    diverges = {"set": {"alignment.learning_rate": 1e30, "training.epochs": 4}}
    path = study_file(tmp_path, **TWO | {"variants": {"policy": {"open": {}, "broken": diverges}}})
    result = casam("study", path, "--out", "out", "--jobs", "2")
    assert result.status == 1
    assert "1 of 2 runs failed: broken_seed-0" in result.err
    assert "about" in result.out
    rows = pd.read_csv(tmp_path / "out" / "results.csv").set_index("cell")
    assert list(rows["status"]) == ["finished", "failed"]
    assert "could train" in rows.loc["broken_seed-0", "reason"]
    assert "broken_seed-0 failed" in (tmp_path / "out" / "summary.md").read_text()
    assert (
        "training diverged" not in (tmp_path / "out" / "summary.md").read_text()
    )  # the site's own log says so

    before = (tmp_path / "out" / "runs" / "open_seed-0" / "events.jsonl").read_bytes()
    path = study_file(tmp_path, **TWO | {"variants": {"policy": {"open": {}}}})
    again = casam("study", path, "--out", "out")
    assert again.status == 0, again.err
    assert "1 runs, 1 of them finished" in again.out
    assert (tmp_path / "out" / "runs" / "open_seed-0" / "events.jsonl").read_bytes() == before


def test_a_part_of_a_study_in_this_process(tmp_path: Path, casam: Casam) -> None:
    path = study_file(tmp_path, **TWO)
    result = casam("study", path, "--out", "out", "--here", "--only", "policy=open")
    assert result.status == 0, result.err
    assert "1 runs, 0 of them finished" in result.out
    rows = pd.read_csv(tmp_path / "out" / "results.csv").set_index("cell")
    assert list(rows["status"]) == ["finished", "missing"]
    assert rows.loc["open_seed-0", "learning_seconds"] > 0
    assert "finished in" in (tmp_path / "out" / "logs" / "open_seed-0.log").read_text()
    refused = casam("study", path, "--out", "out", "--here", "--jobs", "2")
    assert (refused.status, "--here" in refused.err) == (2, True)
    changed = study_file(tmp_path, **TWO | {"set": {"training.epochs": 2}})
    other = casam("study", changed, "--out", "out", "--here", "--only", "policy=closed")
    assert "open_seed-0 holds a run of another scenario" in other.refusal, "tables would mix two studies"


def test_runs_that_share_scores_have_the_figures_of_runs_that_share_none(tmp_path: Path) -> None:
    scenarios = [
        Scenario.model_validate(tiny_table(method=method, evaluation={"max_instances": 4, "tasks": "needed"}))
        for method in ("casam", "oracle", "sequential")
    ]
    decodes = {}
    for scenario in scenarios:
        alone, shared = (tmp_path / kind / scenario.method for kind in ("alone", "shared"))
        run_inprocess(scenario, alone, None)
        with scores_shared(tmp_path / "scores", scenario):
            run_inprocess(scenario, shared, None)
        one, other = (json.loads((folder / "summary.json").read_text()) for folder in (alone, shared))
        decodes[scenario.method] = (sum(one["decodes"]), sum(other["decodes"]))
        for summary in (one, other):
            for key in ("decodes", "timing", "environment", "run", "bytes", "privacy"):
                del summary[key]
        assert one == other
    assert decodes["casam"][0] == decodes["casam"][1] > 0
    assert decodes["oracle"][1] == 0 < decodes["oracle"][0]  # the same layers, and frozen SAM
    assert 0 < decodes["sequential"][1] < decodes["sequential"][0]  # frozen SAM's scores were there


@pytest.mark.usefixtures("here")
def test_a_plan_writes_nothing(tmp_path: Path, casam: Casam) -> None:
    path = study_file(tmp_path, **TWO)
    before = sorted(tmp_path.rglob("*"))
    result = casam("study", path, "--plan")
    assert result.status == 0, result.err
    assert "open_seed-0: 48 images to encode" in result.out
    assert "about 1 minutes" in result.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["institution", "status", "figure", "learning_rate", "last_iou", "mean"])
def test_an_axis_may_not_have_the_name_of_a_column(tmp_path: Path, casam: Casam, name: str) -> None:
    """Some ended in a traceback after all runs, others put figures in the place of the labels."""
    path = study_file(tmp_path, variants={name: {"a": {}, "b": {}}}, comparisons=[])
    assert f"axis '{name}': a column of the tables has this name" in casam("study", path).refusal


def test_every_column_of_a_table_is_known(plan: Plan, tmp_path: Path) -> None:
    """Those that an axis may not be called."""
    claim(Setting(tmp_path / "study", None), plan, "small.toml")
    write_results(tmp_path / "study", plan, {})
    for table in (tmp_path / "study").glob("*.csv"):
        for column in pd.read_csv(table).columns:
            assert column in {"policy", *COLUMNS}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seeds", "one"), ("--seeds", "1,1"), ("--data-root", "nowhere"), ("--set", "x"), ("--set", "seed=5")],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, casam: Casam, option: str, value: str) -> None:
    result = casam("study", study_file(tmp_path, **TWO), option, value)
    assert result.status in (1, 2)
    (line,) = result.err.strip().splitlines()
    assert option in line


def figures_in(folder: Path) -> pd.DataFrame:
    """The rows of results.csv without seconds, which differ between equal runs."""
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "learning_seconds"])


@pytest.mark.slow
def test_cells_in_processes_of_their_own_give_the_figures_of_one_process(
    tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study_file(tmp_path, **TWO)
    assert casam("study", path, "--out", "apart", "--jobs", "2").status == 0
    monkeypatch.setattr("scenarios.study.cell.LocalCells", CellsHere)
    assert casam("study", path, "--out", "here").status == 0
    one, other = (figures_in(tmp_path / name) for name in ("apart", "here"))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.slow
def test_a_study_runs_on_a_ray_cluster_of_two_nodes(tmp_path: Path, casam: Casam) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        path = study_file(tmp_path, **TWO)
        far = casam("study", path, "--out", "far", "--ray", cluster.address)
        assert far.status == 0, far.err
        near = casam("study", path, "--out", "near")
        assert near.status == 0, near.err
    finally:
        cluster.shutdown()
    one, other = (figures_in(tmp_path / name) for name in ("far", "near"))
    pd.testing.assert_frame_equal(one, other)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, casam: Casam) -> None:
    pytest.importorskip("ray")
    result = casam("study", study_file(tmp_path, **TWO), "--ray", "127.0.0.1:1", "--out", "out")
    assert result.status == 1
    assert "no Ray cluster answers there" in result.err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
