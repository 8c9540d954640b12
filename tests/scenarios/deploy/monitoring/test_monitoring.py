"""Metrics, health and JSON log lines: what they say, that they say no more, and the rules of the formats."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from casam_core.errors import DeploymentError, RunInputError
from casam_core.files import append_record, write_atomic
from casam_core.protocol.audit import Release, audit_log, now, read_log
from casam_core.protocol.fingerprint import ROOT
from scenarios.deploy.monitoring.counting import newest_run, site_figures
from scenarios.deploy.monitoring.exposition import Family, exposed
from scenarios.deploy.monitoring.log_lines import record_of
from scenarios.deploy.monitoring.status import (
    LONGEST_SILENCE,
    Contact,
    Page,
    in_background,
    metrics_page,
    status_server,
)
from scenarios.engines.superlink import free_port
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.runs import FinishedRun

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
PAIR = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({PAIR}(?:,{PAIR})*)\}})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")

LABELS = {"run", "status", "institution", "kind", "outcome", "split"}
"""Nothing else tells one sample from another: no task, no reason, no path."""


def read(text: str) -> dict[str, float]:
    """`name{labels}` -> value, by the rules of the text format; an AssertionError where it breaks one."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    typed: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name not in typed, "all samples of a metric stand together"
            assert (kind == "counter") == name.endswith("_total")
            typed.append(name)
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == typed[-1], "a type stands before its samples"
        key = line.rpartition(" ")[0]
        assert key not in found
        found[key] = float(sample[3])
    return found


def labels_in(text: str) -> set[str]:
    return set(re.findall(r"[{,]([a-z_]+)=\"", text))


EVENTS = [
    {"event": "met", "stream": ["polyp", "cells"], "institutions": {"north": ["polyp"], "south": ["cells"]}},
    {"event": "asked", "kind": "train.align", "stage": 1, "task": "polyp",
     "institutions": ["north", "south"]},
    {"event": "answer", "kind": "train.align", "stage": 1, "institution": "north", "up": 900, "down": 40,
     "epsilon": {"epsilon-train": 1.5}, "iou": {}},
    {"event": "refusal", "kind": "train.align", "stage": 1, "institution": "south",
     "outcome": "budget-spent", "incident": ""},
    {"event": "no-result", "kind": "evaluate.stage", "stage": 1, "institution": "south", "outcome": "failed",
     "incident": "0a1b2c3d"},
    {"event": "rejected", "kind": "evaluate.stage", "stage": 1, "institution": "south",
     "reason": "expected 3 arrays, found /data/patient-7.png"},
    {"event": "evaluated", "stage": 1, "iou": {"polyp": 0.5}},
]  # fmt: skip


def write_events(run: Path, events: list[dict[str, object]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    for number, event in enumerate(events):
        append_record(run / "events.jsonl", {"time": 100.0 + number, **event})


def test_a_run_is_counted_by_institution_kind_and_outcome_word(tmp_path: Path) -> None:
    write_events(tmp_path / "first", EVENTS)
    text = exposed(newest_run(tmp_path)())
    found = read(text)
    assert found['casam_run_status{run="first",status="running"}'] == 1
    assert found['casam_run_stages{run="first"}'] == 2
    assert found['casam_run_stages_measured{run="first"}'] == 1
    assert found['casam_run_requests_total{run="first",institution="south",kind="train.align"}'] == 1
    assert found['casam_run_received_bytes_total{run="first",institution="north"}'] == 900
    assert found['casam_run_epsilon_spent{run="first",institution="north",split="epsilon-train"}'] == 1.5
    refused = 'run="first",institution="south",kind="train.align",outcome="budget-spent"'
    assert found[f"casam_run_refusals_total{{{refused}}}"] == 1
    missing = 'run="first",institution="south",kind="evaluate.stage",outcome="failed"'
    assert found[f"casam_run_missing_total{{{missing}}}"] == 1
    assert found['casam_run_last_event_timestamp_seconds{run="first"}'] == 106
    assert labels_in(text) == LABELS
    for words in ("patient", "/data", "polyp", "0a1b2c3d"):
        assert words not in text, "no free text, no task, no incident"


def test_new_events_are_added_and_the_newest_run_counts(tmp_path: Path) -> None:
    """A damaged line is an error of the page, not a smaller count."""
    families = newest_run(tmp_path)
    assert read(exposed(families())) == {"casam_runs": 0}
    write_events(tmp_path / "one", EVENTS)
    families()
    write_events(tmp_path / "one", [{"event": "end"}])
    found = read(exposed(families()))
    assert found['casam_run_status{run="one",status="completed"}'] == 1
    assert found['casam_run_answers_total{run="one",institution="north",kind="train.align"}'] == 1
    with pytest.raises(RunInputError, match="expected a folder with runs"):
        newest_run(tmp_path / "missing")


def test_the_figures_of_a_whole_run_are_those_of_its_audit_log(finished_run: FinishedRun) -> None:
    run = finished_run(tiny_table())
    found = read(exposed(newest_run(run)()))
    arrived = [line.release for line in read_log(run / "audit.jsonl") if line.release.outcome == "ok"]
    counted = sum(value for key, value in found.items() if key.startswith("casam_run_answers_total{"))
    assert counted == len(arrived) > 0
    received = sum(value for key, value in found.items() if key.startswith("casam_run_received_bytes_total{"))
    assert received >= sum(release.bytes for release in arrived), "with the answers before the first stage"


RELEASE = Release(
    now(), "north", "run", "1", "train.align", 1, 0, "polyp", "ok", "adapter", (), 500, "0" * 64,
    {"train": 1.25, "metrics": None, "ledger": 2.0},
)  # fmt: skip


def test_a_site_is_counted_from_what_left(tmp_path: Path) -> None:
    log = audit_log(tmp_path / "audit.jsonl")
    for change in ({}, {"epsilon": {"train": 2.5, "ledger": 3.0}}, {"outcome": "budget-spent", "bytes": 80}):
        log.add(replace(RELEASE, **change))
    (tmp_path / "ledger.jsonl").write_text("{}\n{}\n{}\n")
    text = exposed(site_figures(tmp_path))
    found = read(text)
    assert found["casam_site_audit_consistent"] == 1
    assert found['casam_site_answers_total{kind="train.align",outcome="ok"}'] == 2
    assert found['casam_site_answers_total{kind="train.align",outcome="budget-spent"}'] == 1
    assert found['casam_site_sent_bytes_total{kind="train.align"}'] == 1080
    assert found['casam_site_epsilon_spent{split="train"}'] == 2.5
    assert found["casam_site_ledger_lines"] == 3
    assert found["casam_site_scenarios_waiting"] == 0
    assert labels_in(text) <= LABELS
    assert "polyp" not in text


def test_a_site_whose_audit_log_was_changed_says_so(tmp_path: Path) -> None:
    audit_log(tmp_path / "audit.jsonl").add(RELEASE)
    changed = (tmp_path / "audit.jsonl").read_bytes().replace(b'"bytes": 500', b'"bytes": 501')
    write_atomic(tmp_path / "audit.jsonl", changed)
    assert read(exposed(site_figures(tmp_path)))["casam_site_audit_consistent"] == 0


def test_a_home_without_files_has_metrics_and_none_is_made(tmp_path: Path) -> None:
    assert read(exposed(site_figures(tmp_path)))["casam_site_ledger_lines"] == 0
    assert not list(tmp_path.iterdir())


HARD = Family("casam_x_total", "counter", "One\nline \\ two", ("run",), {('a"b\\c\nd',): 1.0, ("b",): 1e16})


def test_the_text_format_escapes_what_would_end_a_label_or_a_line() -> None:
    text = exposed([HARD, Family("casam_empty", "gauge", "Nothing.")])
    assert read(text) == {'casam_x_total{run="a\\"b\\\\c\\nd"}': 1, 'casam_x_total{run="b"}': 1e16}
    assert text.startswith("# HELP casam_x_total One\\nline \\\\ two\n# TYPE casam_x_total counter\n")


def test_prometheus_own_reader_finds_the_same(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="pip install prometheus-client")
    write_events(tmp_path / "first", EVENTS)
    for families in ([HARD], newest_run(tmp_path)(), site_figures(tmp_path), Contact().families()):
        found = {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in parser.text_string_to_metric_families(exposed(families))
            for sample in family.samples
        }
        assert found == {(f.name, labels): value for f in families for labels, value in f.samples.items()}


def test_a_node_is_healthy_while_the_server_answers_it() -> None:
    moment = [0.0]
    contact = Contact(lambda: moment[0])
    assert contact.health() == (503, "the server has not answered this node yet\n")
    contact.heard()
    moment[0] = LONGEST_SILENCE
    assert contact.health() == (200, "the server knows this node\n")
    assert read(exposed(contact.families())) == {"casam_site_connected": 1}
    moment[0] += 1
    assert contact.health() == (503, "the server has not answered this node for 61 s\n")
    assert read(exposed(contact.families())) == {"casam_site_connected": 0}
    contact.heard()
    assert contact.health()[0] == 200


@contextmanager
def served(pages: Mapping[str, Page]) -> Iterator[str]:
    port = free_port()
    server = status_server("127.0.0.1", port, pages)
    in_background(server)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_pages_answer_and_nothing_else_does(tmp_path: Path) -> None:
    contact = Contact()
    run = tmp_path / "run"
    write_events(run, EVENTS)
    pages = {"/metrics": metrics_page(newest_run(run)), "/health": contact.health}
    with served(pages) as address, httpx.Client(base_url=address, trust_env=False) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "server" not in answer.headers or "Python" not in answer.headers["server"]
        assert 'casam_run_stages{run="run"}' in read(answer.text)
        assert client.get("/health").status_code == 503
        contact.heard()
        assert client.get("/health").status_code == 200
        assert client.get("/metrics/../etc").status_code == 404
        assert client.get("/health?x=1").status_code == 404
        assert client.post("/metrics").status_code == 501
        with (run / "events.jsonl").open("a") as file:
            file.write("no JSON\n")
        broken = client.get("/metrics")
        assert broken.status_code == 500
        assert broken.text.count("\n") == 1


def test_a_page_that_several_ask_for_at_once_counts_every_event_once(tmp_path: Path) -> None:
    asked = {"event": "asked", "kind": "train.align", "stage": 1, "task": "polyp", "institutions": ["north"]}
    events = [{"time": 0, **asked}] * 3000  # so that counting takes a while
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = metrics_page(newest_run(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        texts = [text for _, text in pool.map(lambda _: page(), range(8))]
    lines = {line for text in texts for line in text.splitlines() if line.startswith("casam_run_requests")}
    assert len(lines) == 1
    assert lines.pop().endswith(" 3000.0")


def test_a_taken_port_is_refused_in_one_line() -> None:
    with served({}) as address, pytest.raises(DeploymentError, match="choose another port"):
        status_server("127.0.0.1", int(address.rpartition(":")[2]), {})


# --- log lines


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_the_pages_advice_on_rotation_moves_logs_and_no_evidence(tmp_path: Path) -> None:
    (advice,) = re.findall(r"```logrotate\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.S)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    moved, kept = ("node-0.log", "runs/first/site.log"), ("audit.jsonl", "ledger.jsonl", "sums.jsonl")
    for name in (*moved, *kept):
        (tmp_path / name).write_text("a line\n")
    rules = tmp_path / "rules"
    rules.write_text(advice.replace("/home/casam", str(tmp_path)))
    rules.chmod(0o644)
    tried = subprocess.run(
        ["logrotate", "--force", "--verbose", "--state", str(tmp_path / "state"), str(rules)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    for name in moved:
        assert not (tmp_path / name).exists()
        assert (tmp_path / f"{name}.1.gz").exists()
    for name in kept:
        assert (tmp_path / name).read_text() == "a line\n"


def test_a_line_becomes_an_object() -> None:
    told = record_of("casam | north | encode polyp | 12/40\n", "node", 0.5)
    assert told == {
        "time": "1970-01-01T00:00:00.500+00:00", "part": "node", "level": "INFO",
        "who": "north", "message": "encode polyp", "done": 12, "total": 40,
    }  # fmt: skip
    flower = record_of("\x1b[93mWARNING \x1b[0m:   a node is late\n", "superlink", 0)
    assert (flower["level"], flower["message"]) == ("WARNING", "a node is late")
    fault = record_of("error: key: others may read it\n", "node", 0)
    assert (fault["level"], fault["message"]) == ("ERROR", "key: others may read it"), "an alarm looks for it"
    plain = record_of('Traceback "x"\t\x07\n', "node", 0)
    assert (plain["level"], plain["message"]) == ("INFO", 'Traceback "x"??')
    assert len(str(record_of("x" * 100_000, "node", 0)["message"])) == 8000


WORDS = "import sys, os; print('casam | server | starts'); os.system('echo from a child'); sys.exit('bad')"


def logged(*command: str) -> subprocess.Popen[str]:
    runner = (
        "import sys; from scenarios.deploy.monitoring.log_lines import run_logged; run_logged(sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", runner, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_commands_two_outputs_become_json_lines_and_its_status_stays() -> None:
    process = logged(sys.executable, "-c", WORDS)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["message"] for record in records] == ["starts", "from a child", "bad"]
    assert {record["part"] for record in records} == {Path(sys.executable).name}


def test_a_signal_reaches_the_command_and_its_last_line_is_kept() -> None:
    # Short sleeps: a signal just before a long sleep would wait for its end.
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('ends'), sys.exit(7)))\n"
        "print('ready')\n"
        "while True: time.sleep(0.05)"
    )
    process = logged(sys.executable, "-c", script)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert "ends" in process.communicate(timeout=30)[0]
    assert process.returncode == 7
    assert time.monotonic() - begun < 30


def test_an_unknown_command_is_refused_before_anything_starts(casam: Casam) -> None:
    refused = casam("deploy", "json-log", "--", "no-such-command").refusal
    assert "expected a command, found no 'no-such-command' on PATH" in refused
