"""9, 100 and 1000 institutions through Flower's simulation, compared with an idle app.

Two institutions hold the stream's two tasks; all others hold images of a third task, so every evaluation asks
all institutions. The overhead of a round is its seconds minus the institutions' computing time, divided by
the cores. Computing time is the processor time that each institution records for its request
(client/node/worktime.py). Overhead includes waiting for a disk or a core, and all work of Flower and the
server. The idle app sends and returns as many bytes, to as many nodes, in as many rounds. It runs twice: it
asks as many nodes at once as server/federation/exchange.py does, which is what `ratio_N` compares, and all of
them at once, as in Flower's examples; then the engine checks all open messages again and again.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.speed.memory import peak_of
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from client.node.worktime import noted
from server.federation.exchange import simulated_at_once
from server.run.summary_schema import Summary, read_summary

INSTITUTIONS, SMOKE_INSTITUTIONS = (9, 100, 1000), (9,)
STREAM = ("task-0", "task-1")
EVALUATIONS = len(STREAM) + 1
IDLE_APP = Path(__file__).parent / "idle_app"
SAMPLE_SECONDS = 2.0
LEAST_SECONDS = 0.02
"""Both servers look for replies at this interval, so shorter rounds cannot be distinguished."""


def run(around: Surroundings) -> Figures:
    """Figures by number of institutions N: ratio_N (overhead over the idle app's round, lower is better) and
    ratio_all_N (over its round that asks all at once), round_N, computing_N, idle_N, idle_all_N (seconds),
    per_institution_N (seconds of a round); peak_gib of the last; inprocess_N (seconds of the round in one
    engine of our own, a worker per core), faster_N (its ratio)."""
    columns = ("institutions", "round", "computing", "overhead", "idle app", "ratio", "idle, all at once")
    more = ("ratio", "peak GiB", "in process", "times faster")
    table = table_of("one evaluation at all institutions, seconds", (*columns, *more), left=0)
    figures: Figures = {}
    for count in SMOKE_INSTITUTIONS if around.smoke else INSTITUTIONS:
        around.say(f"scale: {count} institutions")
        scenario = scenario_of(count)
        with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
            with peak_of(held_together, SAMPLE_SECONDS) as peak:
                around.engines.simulation(scenario, Path(folder) / "run")
            simulated = read_summary(Path(folder) / "run")
            computing = computed(Path(folder) / "run") / min(count, os.cpu_count() or 1)
            around.engines.inprocess(scenario, Path(folder) / "workers", os.cpu_count() or 1)
            workers = read_summary(Path(folder) / "workers")
            if workers.matrix != simulated.matrix:
                raise RunError(f"scale: the engines disagree on the matrix of {count} institutions")
        seconds = evaluation_seconds(simulated)
        idle, idle_all = (
            idle_round(around, count, simulated, window) for window in (simulated_at_once(), count)
        )
        overhead = max(seconds - computing, LEAST_SECONDS)
        figures |= {
            f"ratio_{count}": overhead / max(idle, LEAST_SECONDS),
            f"ratio_all_{count}": overhead / max(idle_all, LEAST_SECONDS),
            f"round_{count}": seconds,
            f"computing_{count}": computing,
            f"idle_{count}": idle,
            f"idle_all_{count}": idle_all,
            f"per_institution_{count}": seconds / count,
            "peak_gib": peak[0] / 2**30,
            f"inprocess_{count}": evaluation_seconds(workers),
            f"faster_{count}": seconds / evaluation_seconds(workers),
        }
        ratio, ratio_all = (figures[f"{name}_{count}"] for name in ("ratio", "ratio_all"))
        last = (figures[name] for name in ("peak_gib", f"inprocess_{count}", f"faster_{count}"))
        cells = (seconds, computing, overhead, idle, ratio, idle_all, ratio_all, *last)
        table.add_row(str(count), *(f"{cell:.2f}" for cell in cells))
    around.show(table)
    return figures


def scenario_of(count: int, stages: int = len(STREAM)) -> Scenario:
    """A minimal scenario in which all institutions evaluate after every stage.

    stages: how many tasks of STREAM are learned.
    """
    stream = STREAM[:stages]

    def data(phantom: str) -> dict[str, Any]:
        return {"reader": "phantom", "phantom": phantom, "images": 8, "size": 64, "limit": {"test": 1}}

    holders = [
        {"name": f"holder-{i}", "data": {task: data(phantom)}}
        for i, (task, phantom) in enumerate(zip(stream, ("polyp", "histology"), strict=False))
    ]
    others = [
        {"name": f"other-{i}", "unseen": True, "data": {"other": data("glomeruli_a")}}
        for i in range(count - len(stream))
    ]
    return Scenario.model_validate(
        {
            "name": "scale",
            "stream": list(stream),
            "backbone": {"name": "tiny"},
            "training": {"epochs": 1, "fallback_to_identity": False, "instances": 1},
            "router": {"folds": 2},
            "evaluation": {"max_instances": 1},
            "institutions": [*holders, *others],
        }
    )


def evaluation_seconds(of_run: Summary) -> float:
    """Seconds of the last stage's evaluation, when all workers have loaded everything."""
    return float(of_run.timing.stages[-1]["evaluate"])


def computed(run: Path) -> float:
    """Processor seconds of all institutions for the same evaluation."""
    seconds = [
        work.processor_seconds
        for private in run.glob("institutions/*/private")
        for work in noted(private)
        if work.kind == "evaluate.stage" and work.stage == len(STREAM)
    ]
    if not seconds:
        raise RunError(f"{run}: no institution recorded its computing time")
    return sum(seconds)


def idle_round(around: Surroundings, count: int, simulated: Summary, window: int) -> float:
    """Median seconds of the idle app's rounds with the bytes of an evaluation; the first one is a warm-up.

    window: it asks at most so many nodes at once.
    """
    down, up = (
        sum(size for name, size in counted.items() if name.startswith("other"))
        / (count - len(STREAM))
        / EVALUATIONS
        for counted in (simulated.bytes.down, simulated.bytes.up)
    )
    lines: list[str] = []
    sizes = {"down": int(down), "up": int(up)}
    settings = {"nodes": count, "rounds": EVALUATIONS + 1, "at_once": window, **sizes}
    around.engines.flower_app(IDLE_APP, settings, count, lines.append)
    seconds = [
        float(found[1]) for line in lines if (found := re.search(r"idle \| round took ([\d.]+)", line))
    ]
    if len(seconds) != EVALUATIONS + 1:
        raise RunError(f"scale: expected {EVALUATIONS + 1} rounds of the idle app, found {len(seconds)}")
    return median(seconds[1:])


def held_together() -> int:
    """Bytes of this process and its descendants; shared pages count once (PSS)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        except (OSError, ValueError, IndexError):
            continue  # it has ended since
    total, pending = 0, [os.getpid()]
    while pending:
        process = pending.pop()
        pending += children.get(process, [])
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except (OSError, ValueError):
            continue
    return total
