"""`casam audit`: exit 0 for a whole log, 1 for a tampered one, one line that says which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from casam_core.protocol.audit import AuditError, AuditLog, read_log
from scenarios.commands.cli import app
from tests.conftest import tiny_table
from tests.runs import FinishedRun


@pytest.fixture
def run(finished_run: FinishedRun) -> Path:
    return finished_run(tiny_table())


def site_log(run: Path) -> Path:
    return run / "institutions" / "north" / "private" / "audit.jsonl"


def audit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_a_whole_log_is_consistent_and_says_what_cannot_be_checked(run: Path) -> None:
    result = audit("verify", site_log(run))
    assert result.exit_code == 0
    assert "not checked without --anchor" in result.output
    result = audit("verify", site_log(run), "--anchor", run / "audit.jsonl")
    assert (result.exit_code, "not checked" in result.output) == (0, False)


def test_an_edited_log_is_tampered(run: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(site_log(run).read_text().replace('"stage": 1', '"stage": 7', 1))
    result = audit("verify", tmp_path / "log")
    assert result.exit_code == 1
    assert result.output.startswith("tampered: ")
    assert "was altered" in result.output


def test_a_cut_log_is_found_with_the_servers_heads_only(run: Path, tmp_path: Path) -> None:
    lines = site_log(run).read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(lines[:-1]))
    assert audit("verify", tmp_path / "log").exit_code == 0
    result = audit("verify", tmp_path / "log", "--anchor", run / "audit.jsonl")
    assert result.exit_code == 1
    assert "the log was cut" in result.output


def test_what_is_no_log_is_bad_input(tmp_path: Path) -> None:
    assert isinstance(audit("verify", tmp_path / "absent").exception, AuditError)


def test_show_lists_every_release(run: Path) -> None:
    output = audit("show", site_log(run)).output
    for word in ("query.identify", "train.align", "train.router", "evaluate.stage", "polyp", "adapter"):
        assert word in output
    rows = [json.loads(line) for line in audit("show", "--json", site_log(run)).output.splitlines()]
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))


def test_both_sides_of_a_run_agree_and_a_hidden_release_shows(run: Path, tmp_path: Path) -> None:
    assert audit("compare", site_log(run), run / "audit.jsonl").exit_code == 0
    lines = site_log(run).read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(line for line in lines if "train.router" not in line))
    result = audit("compare", tmp_path / "log", run / "audit.jsonl")
    assert result.exit_code == 1
    assert "arrived and never left: train.router of stage 1" in result.output


def test_an_anchor_without_answers_of_this_institution_proves_nothing(run: Path, tmp_path: Path) -> None:
    lines = site_log(run).read_text().splitlines(keepends=True)
    cut, emptied = tmp_path / "cut", tmp_path / "emptied"
    cut.write_text("".join(lines[:2]))
    emptied.write_text("")
    for log, anchor in ((cut, site_log(run)), (emptied, run / "audit.jsonl"), (run / "audit.jsonl", cut)):
        result = audit("verify", log, "--anchor", anchor)
        assert isinstance(result.exception, AuditError)
        assert "none is missing" not in result.output


def test_the_two_logs_of_a_comparison_are_not_mistaken_for_each_other(run: Path) -> None:
    result = audit("compare", run / "audit.jsonl", site_log(run))
    assert "write the institution's file first" in str(result.exception)
    assert "verdict" not in result.output


def test_logs_without_a_common_release_are_not_called_equal(run: Path, tmp_path: Path) -> None:
    (tmp_path / "emptied").write_text("")
    for server in (tmp_path / "emptied", in_another_run(run, tmp_path / "other")):
        result = audit("compare", site_log(run), server)
        assert isinstance(result.exception, AuditError)
        assert "equal" not in result.output


def in_another_run(run: Path, path: Path) -> Path:
    """The server's log of a run in which north did not take part."""
    log = AuditLog(path)
    for line in read_log(run / "audit.jsonl"):
        if line.release.institution != "north":
            log.add(replace(line.release, run="another"))
    return path


def test_show_warns_of_a_log_that_is_not_whole(run: Path, tmp_path: Path) -> None:
    lines = site_log(run).read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join([lines[0], *lines[2:]]))
    result = audit("show", tmp_path / "log")
    assert "a line was removed, added or moved" in result.stderr
    assert audit("show", site_log(run)).stderr == ""
