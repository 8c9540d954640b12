"""Many seeds of the simulated disasters, in a process per core (tests/disasters, so from a clone only).

Every played seed is a line of a file, with the code that it played, so an interrupted call goes on where it
was, and a changed product begins anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from casam_bench.bench import Figures, Surroundings
from casam_core.errors import RunError
from casam_core.files import read_records
from casam_core.protocol.fingerprint import ROOT, code_fingerprint

SEEDS, SMOKE_SEEDS = 2000, 6


def run(around: Surroundings) -> Figures:
    """seeds, broken (seeds in which a law did not hold), finished (share of runs), a_second_and_core."""
    if not (ROOT / "tests" / "disasters").is_dir():
        raise RunError(f"disasters: expected tests/disasters in {ROOT}, found none; run this from a clone")
    home = (around.parts or around.home) / "disasters"
    seeds = around.seeds or (SMOKE_SEEDS if around.smoke else SEEDS)
    around.say(f"disasters: {seeds} seeds, noted in {home}")
    play(seeds, home, os.cpu_count() or 1)
    records = [record for record in noted(home) if record["seed"] < seeds]
    broken = [record for record in records if record["broken"]]
    if len(records) < seeds:
        raise RunError(f"disasters: {seeds - len(records)} of {seeds} seeds were not played; call it again")
    table = Table("end of the run", "seeds")
    for end, count in Counter(str(record["end"]) for record in records).items():
        table.add_row(end, str(count))
    around.show(table)
    for record in broken:
        around.say(f"python -m tests.disasters {record['seed']}: {record['broken'][0]}")
    return {
        "seeds": len(records),
        "broken": len(broken),
        "finished": sum(record["end"] == "finished" for record in records) / len(records),
        "a_second_and_core": len(records) / sum(record["seconds"] for record in records),
    }


def play(seeds: int, home: Path, processes: int) -> None:
    """Play the seeds that are not noted yet; all processes end with this call."""
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.disasters", "--seeds", str(seeds), "--home", str(home)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        started = []
        for number in range(processes):
            with (home / f"output-{number}.log").open("ab") as log:
                process = subprocess.Popen(
                    [*command, "--part", f"{number}/{processes}"],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            started.append(process)
        for process in started:
            process.wait()


def noted(home: Path) -> Iterable[dict[str, Any]]:
    """The seeds that this code has played, each once."""
    found = {
        record["seed"]: record
        for file in sorted(home.glob("seeds-*.jsonl"))
        for record, _ in read_records(file)
        if record.get("code") == code_fingerprint()
    }
    return found.values()
