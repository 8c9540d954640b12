"""`casam report` as a person types it."""

from __future__ import annotations

from pathlib import Path

from tests.casam_command import Casam
from tests.scenarios.report.making import scenario_of, write_run


def test_a_run_has_its_report_beside_its_figures(casam: Casam, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    ended = casam("report", folder)
    assert ended.status == 0
    assert ended.out.strip().endswith(f"Report: {folder / 'report.html'}")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_many_runs_are_compared_and_full_adds_each(casam: Casam, tmp_path: Path) -> None:
    for seed in range(7):
        write_run(tmp_path / "study" / "runs" / f"s{seed}", scenario_of(seed=seed))
    ended = casam("report", tmp_path / "study", "--out", tmp_path / "new" / "all.html")
    assert ended.status == 0
    assert "comparison of 7 runs" in ended.out
    assert "The continual matrix" not in (tmp_path / "new" / "all.html").read_text()


def test_what_is_no_run_is_refused_and_nothing_is_written(casam: Casam, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = casam("report", tmp_path / "empty")
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1
    assert not list((tmp_path / "empty").iterdir())


def test_only_a_page_is_overwritten(casam: Casam, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    before = (folder / "summary.json").read_bytes()
    ended = casam("report", folder, "--out", folder / "summary.json")
    assert ended.status == 2
    assert "ends in .html" in ended.err
    assert (folder / "summary.json").read_bytes() == before
