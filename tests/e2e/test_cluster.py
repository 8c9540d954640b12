"""A simulation on a Ray cluster that is there already: two nodes, here both on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from ray.cluster_utils import Cluster

from tests.conftest import tiny_table
from tests.runs import FinishedRun, summary_of

pytestmark = pytest.mark.slow

CASAM = str(Path(sys.executable).parent / "casam")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One CPU each, so that two institutions can only work at once on two nodes."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def parents_of_workers() -> set[str]:
    """The nodes' processes under which Flower's workers run now."""
    listed = subprocess.run(["ps", "-ww", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 1) for line in listed.stdout.splitlines()[1:]]
    return {row[0] for row in rows if len(row) == 2 and row[1].startswith("ray::ClientAppActor")}


def test_a_run_uses_both_nodes_of_a_cluster_and_gives_the_same_numbers(
    tmp_path: Path, cluster: Cluster, finished_run: FinishedRun
) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    nodes = {str(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()}
    run = subprocess.Popen(
        [CASAM, "run", "tiny.toml", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"CASAM_RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    busy: set[str] = set()
    while run.poll() is None:
        busy |= parents_of_workers() & nodes
        time.sleep(0.2)
    assert run.stdout is not None
    said = run.stdout.read()
    assert run.returncode == 0, said
    assert busy == nodes
    alone = summary_of(finished_run(tiny_table()))
    assert summary_of(tmp_path / "run")["matrix"] == alone["matrix"]
    # The cluster is somebody else's: it outlives the run.
    assert len(nodes) == len([node for node in cluster.list_all_nodes() if node.any_processes_alive()]) == 2
