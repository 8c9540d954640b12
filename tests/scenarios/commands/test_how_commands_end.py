"""One rule for the exit status, an answer to Ctrl-C, and facts as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from casam_core import errors
from casam_core.errors import CasamError
from scenarios.commands.cli import EXIT_STATUS
from tests.banks import tiny_bank
from tests.casam_command import Casam
from tests.conftest import tiny_table

STATUS = {"RunError": 1}
"""Every other error says that the input is bad: 2."""


def test_the_rule_stands_in_the_help(casam: Casam) -> None:
    assert EXIT_STATUS in " ".join(casam("--help").out.split())


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CasamError)]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_its_status(error: type[CasamError]) -> None:
    assert error.status == STATUS.get(error.__name__, 2)


@pytest.mark.parametrize(
    ("words", "suggestion"), [(["rnu"], "run"), (["data", "chekc"], "check"), (["bank", "shwo"], "show")]
)
def test_a_mistyped_command_is_suggested_once(casam: Casam, words: list[str], suggestion: str) -> None:
    ended = casam(*words)
    assert ended.status == 2
    assert ended.err.count(f"'{suggestion}'") == 1


INTERRUPTED = """
import signal, sys, time
from scenarios.commands.terminal import at_ctrl_c
with at_ctrl_c(lambda: "stopped; to continue: casam run --resume RUN"):
    try:
        print("works", flush=True)
        time.sleep(60)
    finally:
        print("tidies up", flush=True)
        time.sleep(SECONDS)
"""


def interrupted(seconds: float, times: int) -> tuple[int, str, float]:
    """Press Ctrl-C `times` times. (status, stderr, seconds until the end)"""
    code = INTERRUPTED.replace("SECONDS", str(seconds))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        begun = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            process.stdout.readline()
        err = process.stderr.read()
        return process.wait(), err, time.monotonic() - begun


def test_ctrl_c_answers_in_one_line_at_once_and_tidies_up() -> None:
    _, err, _ = interrupted(0.0, times=1)
    assert err.strip().splitlines()[0] == (
        "stopped; to continue: casam run --resume RUN (Ctrl-C again ends it at once)"
    )


def test_a_second_ctrl_c_ends_at_once() -> None:
    status, _, seconds = interrupted(50.0, times=2)
    assert status == 130
    assert seconds < 20


def test_a_stopped_run_names_the_command_that_continues_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(tiny_table(training={"epochs": 10_000})))
    code = "import sys; from scenarios.commands.cli import main; sys.argv[0] = 'casam'; main()"
    words = ["run", "mine.toml", "--engine", "inprocess", "--out", "out"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=dict(os.environ, CASAM_HOME=str(tmp_path / "home"), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "train" in line and "/" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 130, err
    said = f"stopped; to continue: casam run --resume {tmp_path / 'out'} (Ctrl-C again ends it at once)"
    assert err.strip().splitlines() == [said]


def as_json(casam: Casam, *words: str | Path) -> Any:
    ended = casam(*words, "--json")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def test_lists_are_printed_as_json(casam: Casam) -> None:
    assert "quickstart" in [item["name"] for item in as_json(casam, "scenarios")]
    assert "order" in [item["name"] for item in as_json(casam, "studies")]


def test_a_bank_is_printed_as_json(casam: Casam, tmp_path: Path) -> None:
    bank = tiny_bank(tmp_path / "bank").folder
    shown = as_json(casam, "bank", "show", bank)
    assert shown["entries"][0].keys() >= {"task", "threshold", "bytes", "digest", "form", "router"}
    assert set(as_json(casam, "bank", "verify", bank)) >= {entry["task"] for entry in shown["entries"]}
