"""One rule for the exit status, an answer to Ctrl-C, and facts as JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import typer
from PIL import Image

from casam_core import errors
from casam_core.bank.bank import Bank
from casam_core.errors import CasamError
from scenarios.commands import cli
from scenarios.commands.cli import EXIT_STATUS, app, how_to_continue
from tests.banks import tiny_bank
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.scenarios.commands.test_cli import commands

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
        while True:
            time.sleep(0.05)  # a signal just before a long sleep would wait for its end
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


def test_an_error_that_a_library_makes_of_ctrl_c_is_no_error(
    casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's exporter, stopped while it imports its parts, raises an AttributeError."""

    def exports(**options: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'") from None

    monkeypatch.setattr(cli, "app", exports)
    ended = casam("bank")
    assert ended.status == 130
    assert ended.err.strip() == "stopped (Ctrl-C again ends it at once)"


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


def test_a_run_stopped_before_its_first_stage_says_what_stands_in_the_way(tmp_path: Path) -> None:
    assert how_to_continue(tmp_path / "out").endswith("give the same command")
    (tmp_path / "flower.log").touch()
    assert f"{tmp_path} is not empty, so start again with another --out" in how_to_continue(tmp_path)


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


ACTS = [
    "run",
    "init",
    "report",
    "card",
    "export",
    "study",
    "studio",
    "compare",
    "data-preview",
    "bank-remove",
    "bank-merge",
    "bank-import-official",
    "bank-export-official",
    "bank-export-onnx",
    "audit-accept",
    "site-init",
    "site-approve",
    "site-withdraw",
    "node",
    "gateway",
    "provision",
    "deploy-local",
    "deploy-run",
    "deploy-register",
    "deploy-revoke",
    "deploy-key",
    "deploy-metrics",
    "deploy-json-log",
    "bundle-hash",
    "bundle-build",
    "schema",
    "scenarios-show",
    "scenarios-frame",
    "scenarios-library",
    "studies-show",
]
"""Commands that do something and print where it is, or print one text as it is: a hash, a schema, a file."""


def test_every_command_that_prints_facts_can_print_them_as_json() -> None:
    names = dict(commands(typer.main.get_command(app)))
    without = {
        name.replace(" ", "-")
        for name, command in names.items()
        if "--json" not in {option for found in command.params for option in found.opts}
    }
    assert without == set(ACTS)


def test_no_help_loses_its_brackets(casam: Casam) -> None:
    """rich takes words in brackets for markup; a backslash before them keeps them."""
    found = 0
    for name, command in commands(typer.main.get_command(app)):
        texts = [command.help or "", *(getattr(given, "help", None) or "" for given in command.params)]
        wanted = re.findall(r"\[[^\]\s]+\]", " ".join(texts))
        if wanted:
            found += len(wanted)
            shown = "".join(casam(*name.split(), "--help").out.split())
            assert all(text in shown for text in wanted), f"casam {name} --help"
    assert found >= 2


def test_a_help_text_fills_the_lines_of_the_terminal() -> None:
    helps = {name: command.help or "" for name, command in commands(typer.main.get_command(app))}
    assert len(helps) > 40
    assert [name for name, text in helps.items() if "\n" in text.replace("\n\n", "")] == []


def test_the_folder_of_a_run_is_its_bank(casam: Casam, tmp_path: Path) -> None:
    tiny_bank(tmp_path / "run" / "bank")
    assert as_json(casam, "bank", "show", "run") == as_json(casam, "bank", "show", "run/bank")
    assert as_json(casam, "bank", "verify", "run") == as_json(casam, "bank", "verify", "run/bank")
    assert "no bank at nope" in casam("bank", "show", "nope").refusal


def test_of_one_layer_for_all_tasks_the_bank_is_that_of_the_last_stage(casam: Casam, tmp_path: Path) -> None:
    Bank.open(tmp_path / "run" / "bank", create=True)
    for stage in (1, 9, 10):
        tiny_bank(tmp_path / "run" / "bank" / f"stage-{stage}", *["polyp", "histology"][: 1 + (stage > 9)])
    assert as_json(casam, "bank", "show", "run") == as_json(casam, "bank", "show", "run/bank/stage-10")
    assert len(as_json(casam, "bank", "show", "run")["entries"]) == 2


def test_what_waits_and_was_approved_is_printed_as_json(casam: Casam, tmp_path: Path) -> None:
    folders = ["--out", tmp_path / "kit", "--home", tmp_path / "home", "--data", tmp_path]
    assert casam("provision", "--institutions", "north", "--server", "localhost:9092", *folders).status == 0
    node = tmp_path / "kit" / "institutions" / "north" / "node.toml"
    with node.with_name("site.toml").open("a") as site:
        site.write('[tasks.polyp]\nreader = "phantom"\nphantom = "polyp"\n')
    assert as_json(casam, "site", "review", "--node", node) == []
    scenario = tmp_path / "mine.toml"
    scenario.write_text(tomli_w.dumps(tiny_table()))
    assert casam("site", "approve", scenario, "--node", node).status == 0
    (given,) = as_json(casam, "site", "review", "--node", node)
    assert (given["state"], given["by"]) == ("approved", "person")
    page = as_json(casam, "site", "review", scenario, "--node", node)
    assert all(section.keys() == {"heading", "blocks"} for section in page)


def test_a_checked_folder_is_printed_as_json(casam: Casam, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask_HW = np.zeros((16, 16), np.uint8)
    mask_HW[2:6, 2:6] = 1
    for i in range(12):
        Image.fromarray(rng.integers(0, 99, (16, 16), np.uint8)).save(tmp_path / f"x{i}.png")
        Image.fromarray(mask_HW).save(tmp_path / f"x{i}_mask.png")
    found = as_json(casam, "data", "check", tmp_path)
    assert found["data"]["image_files"] == "{id}.*"
    assert found["datasets"][tmp_path.name]["images"] == 12
    assert found["faults"] == []
    Image.fromarray(mask_HW * 0).save(tmp_path / "x3_mask.png")
    ended = casam("data", "check", tmp_path, "--json")
    assert ended.status == 1
    assert "x3_mask.png" in json.loads(ended.out)["faults"][0]


def test_a_run_is_watched_as_json(casam: Casam, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(tiny_table()))
    assert casam("run", path, "--engine", "inprocess", "--out", "out").status == 0
    state = as_json(casam, "watch", "out", "--once")
    assert state["status"] == "completed"
    assert state["sites"].keys() == {site["name"] for site in tiny_table()["institutions"]}
    events = [json.loads(line) for line in casam("watch", "out", "--json").out.splitlines()]
    kept = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    assert events == [json.loads(line) for line in kept][: len(events)]
    assert events[-1]["event"] == "end"
    assert as_json(casam, "bank", "admit", "out") == []


BASH = """
eval "$(_CASAM_COMPLETE=source_bash casam)"
COMP_WORDS=(casam %s) COMP_CWORD=%d
_casam_completion casam
echo "${COMPREPLY[@]}"
"""
ZSH = """
autoload -U compinit && compinit -u
eval "$(_CASAM_COMPLETE=source_zsh casam)"
whence -w _casam_completion
"""


def in_shell(shell: str, script: str) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ, PATH=path, PYTHONPATH=str(Path(__file__).parents[3]))
    done = subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [("scen", 1, "scenarios"), ("bank sh", 2, "show"), ("predict --ov", 2, "--overlay")],
)
def test_bash_completes_commands_and_options(words: str, place: int, expected: str) -> None:
    assert in_shell("bash", BASH % (words, place)).split() == [expected]


def test_zsh_accepts_the_completion() -> None:
    assert "function" in in_shell("zsh", ZSH)
