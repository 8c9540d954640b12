"""`casam export`: what the tools read back is what the server knew, stage by stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scenarios.export.curves import curves_of
from scenarios.report.reading import read_run
from tests.casam_command import Casam
from tests.opened import opened_below
from tests.scenarios.report.making import write_run

IOU = {"iou/polyp": [0.60, 0.80, 0.80, 0.78], "iou/histology": [0.65, None, 0.70, 0.70]}
"""As tests/scenarios/report/making.py writes them; stage 0 is frozen SAM."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose third stage told what south spent."""
    made = write_run(tmp_path / "one")
    answer = {"event": "answer", "institution": "south", "stage": 2, "kind": "train.align"}
    lines = (made / "events.jsonl").read_text().splitlines()
    told = [
        json.dumps({"time": 1_790_000_005.0, **answer, "epsilon": {"epsilon-train": spent}, "iou": {}})
        for spent in (1.25, 2.25)
    ]
    (made / "events.jsonl").write_text("\n".join([*lines[:6], *told, *lines[6:]]) + "\n")
    return made


def values(points: Any) -> dict[str, dict[int, float]]:
    """By tag and step."""
    found: dict[str, dict[int, float]] = {}
    for point in points:
        found.setdefault(point.tag, {})[point.step] = point.value
    return found


def test_curves_over_the_stages(folder: Path) -> None:
    found = values(curves_of(read_run(folder, "one")).points)
    for tag, cells in IOU.items():
        assert found[tag] == {step: cell for step, cell in enumerate(cells) if cell is not None}
    assert found["unseen-iou/spleen_ct"] == {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.45}
    assert found["bytes-up/north"] == {1: 5_000, 2: 10_000, 3: 15_000}
    assert found["bytes-down/west"] == {2: 60_000, 3: 90_000}
    assert found["epsilon-train/south"] == {2: 2.25}
    assert found["summary/ff_iou"] == {3: 1.0}
    assert found["summary/routing_accuracy"] == {3: 27 / 28}


def test_only_the_servers_files_are_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "institutions" / "north" / "private").mkdir(parents=True)
    with opened_below(tmp_path) as opened:
        curves_of(read_run(folder, "one"))
    names = ("summary.json", "scenario.json", "events.jsonl", "audit.jsonl")
    assert opened == {f"one/{name}" for name in names}


def test_tensorboard_reads_them_back(casam: Casam, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ended = casam("export", folder, "--to", "tensorboard", "--out", tmp_path / "logs")
    assert ended.status == 0, ended.err
    assert ended.out.strip() == f"1 run for tensorboard: {tmp_path / 'logs'}"
    read = EventAccumulator(str(tmp_path / "logs" / "one"))
    read.Reload()
    scalars = read.Scalars("iou/polyp")
    assert [scalar.step for scalar in scalars] == [0, 1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(IOU["iou/polyp"])
    assert scalars[0].wall_time == 1_790_000_001.0
    assert read.Scalars("epsilon-train/south")[0].value == 2.25
    assert b"scenario: by-hand" in read.Tensors("run/text_summary")[0].tensor_proto.string_val[0]


def test_a_run_is_written_once(casam: Casam, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    command = ("export", folder, "--to", "tensorboard", "--out", tmp_path / "logs")
    assert casam(*command).status == 0
    before = sorted((tmp_path / "logs").rglob("*"))
    assert "exists already" in casam(*command).refusal
    assert sorted((tmp_path / "logs").rglob("*")) == before


@pytest.mark.slow  # MLflow makes its database table by table
@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
def test_mlflow_reads_them_back(casam: Casam, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    folder = folder.rename(folder.with_name("it's one"))
    command = ("export", folder, "--to", "mlflow", "--out", tmp_path / "store")
    ended = casam(*command)
    assert ended.status == 0, ended.err
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("casam")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("it's one", "FINISHED")
    assert run.data.params["scenario"] == "by-hand"
    history = client.get_metric_history(run.info.run_id, "iou/polyp")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(IOU["iou/polyp"]))
    assert history[0].timestamp == 1_790_000_001_000
    assert "already holds a run it's one" in casam(*command).refusal


SILENT = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("asked for", *arguments, file=sys.stderr)
        raise OSError("no network here")

sys.addaudithook(refuse)
from scenarios.commands.cli import main
main()
"""


@pytest.mark.slow
def test_mlflow_tells_nobody(folder: Path, tmp_path: Path) -> None:
    """In an environment that MLflow does not take for a test: there it would be silent by itself."""
    kept = ("PATH", "PYTHONPATH", "HOME", "CASAM_HOME")
    command = [sys.executable, "-c", SILENT, "export", folder, "--to", "mlflow", "--out", tmp_path / "store"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=Path(__file__).parents[3],
        env={name: os.environ[name] for name in kept if name in os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "mlflow.db").exists()
    assert "asked for" not in done.stderr


@pytest.mark.parametrize(
    ("to", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.entities")]
)
def test_a_missing_extra_is_one_line(
    casam: Casam, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = casam("export", folder, "--to", to, "--out", tmp_path / "logs").refusal
    assert line.endswith(f"run: pip install 'casam[{to}]'")
    assert not (tmp_path / "logs").exists()


def test_an_unknown_tool_and_an_unfinished_run(casam: Casam, tmp_path: Path) -> None:
    assert "tensorboard, mlflow" in casam("export", tmp_path, "--to", "wandb", "--out", "x").refusal
    ended = casam("export", tmp_path, "--to", "tensorboard", "--out", "x")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert not (tmp_path / "x").exists()
