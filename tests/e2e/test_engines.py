"""True runs: the simulation through a real `flwr run`, and real images through a real backbone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from casam_core.config.scenario import Scenario
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines.processes import MARKER, end_processes
from tests.banks import files_of
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun, summary_of

pytestmark = pytest.mark.slow

NUCLEI = Path(__file__).parents[3] / "shared" / "data"
VOLATILE = ("timing", "environment", "run")


def casam_run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`casam run ...` in a process of its own."""
    command = [str(Path(sys.executable).parent / "casam"), "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def lasting(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in summary_of(folder).items() if key not in VOLATILE}


def succeeded(result: subprocess.CompletedProcess[str], run: Path) -> None:
    """A run that ends well says where its folder is."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"Run folder: {run}"


SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "minimum_cohort": 2}
PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.01},
}
POLICIES: dict[str, dict[str, Any]] = {
    "open": {},
    "private": {"north": PRIVATE, "south": SECRET, "west": SECRET},
}


@pytest.mark.parametrize("policies", POLICIES)
def test_the_simulation_and_one_process_give_the_same_numbers(
    tmp_path: Path, finished_run: FinishedRun, policies: str
) -> None:
    table = with_policies(tiny_table(privacy={"steps": 3}), **POLICIES[policies])
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    run, alone = tmp_path / "simulation", finished_run(table)
    succeeded(casam_run("tiny.toml", "--engine", "simulation", "--out", run.name, cwd=tmp_path), run)
    assert lasting(run) == lasting(alone)
    assert files_of(run / "bank").keys() == files_of(alone / "bank").keys()
    assert (run / "bank" / "manifest.json").read_bytes() == (alone / "bank" / "manifest.json").read_bytes()


def test_a_run_in_one_process_is_a_command(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table(stream=["polyp"])))
    result = casam_run("tiny.toml", "--engine", "inprocess", "--out", "run", cwd=tmp_path)
    succeeded(result, tmp_path / "run")


def test_a_run_that_fails_inside_flower_exits_1_with_the_reason(tmp_path: Path) -> None:
    # Nobody answers within this deadline; the check before the run cannot know.
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table(deadlines={"train": 0.001})))
    result = casam_run("tiny.toml", "--out", "run", cwd=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: the run failed: stage 1: no holder of task 'polyp' could train")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"the real nuclei sets are not at {NUCLEI}")
def test_institutions_learn_real_nuclei_in_sequence(tmp_path: Path) -> None:
    """The nuclei scenario at reduced size: a few images, a dozen steps per task."""
    small = [f"institutions.{i}.data.{task}.limit={{train=8, val=2, test=4}}" for i, task in enumerate(TASKS)]
    settings = [*small, "training.epochs=3", "evaluation.max_instances=6"]
    result = casam_run(
        "nuclei", "--engine", "inprocess", "--data-root", str(NUCLEI), "--out", "run",
        *(argument for setting in settings for argument in ("--set", setting)),
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    summary = summary_of(tmp_path / "run")
    print(
        f"nuclei at reduced size: frozen {summary['zero_shot']['iou']}, last {summary['matrix']['iou'][-1]}"
    )
    learned = dict(zip(summary["tasks"], summary["matrix"]["iou"][-1], strict=True))
    frozen = summary["zero_shot"]["iou"]
    assert sum(learned.values()) > sum(frozen[task] for task in TASKS)


TASKS = ("fluorescence", "histology_purple", "histology_white")


def test_a_bare_flwr_run_works_from_an_empty_flower_home(tmp_path: Path, short_folder: Path) -> None:
    """No download, every institution hosted though Flower starts two nodes, an honest status; and no
    waiting for a Ray cluster that somebody once started and killed."""
    (short_folder / "ray").mkdir()
    (short_folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    home, mark = tmp_path / "flower-home", uuid.uuid4().hex
    settings = tmp_path / "settings.toml"
    scenario = Scenario.model_validate(tiny_table()).canonical_json()
    settings.write_text(tomli_w.dumps({"scenario": scenario, "out": str(tmp_path), "run": "bare"}))
    environment = os.environ | {
        # As in an activated environment: Flower starts its parts by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_TMPDIR": str(short_folder),
        MARKER: mark,
    }
    flwr = str(Path(sys.executable).parent / "flwr")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [flwr, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    try:
        run = call("run", ".", "--stream", "-c", str(settings))
        status = call("list", "--limit", "1", "--format", "json")
    finally:
        end_processes(mark)
    assert "finished:completed" in status.stdout, run.stdout + run.stderr + status.stdout
    assert summary_of(tmp_path / "bare")["complete"]["last_iou"]
    assert "casam | server | stage 1/2" in run.stdout
    assert "FutureWarning" not in run.stdout, "Ray's noise"
    # The runtime environment that `flwr run` makes holds no second torch.
    assert not list(home.rglob("torch"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets must fit into 107 characters; pytest's own folders have half of them already."""
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        yield Path(name)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
