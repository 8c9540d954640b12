"""`python -m tests.disasters`: replay one seed, or play many and note how they ended."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from casam_core.files import append_record, read_records
from casam_core.protocol.fingerprint import code_fingerprint
from tests.disasters.faults import plan_of
from tests.disasters.planted import PLANTED, first_seed
from tests.disasters.playing import play
from tests.disasters.shrink import shrink, story


def main() -> int:
    """The exit status: 1 if a law was broken."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(prog="python -m tests.disasters", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="replay this seed and shrink what fails")
    parser.add_argument("--seeds", type=int, default=0, help="play this many seeds, from 0")
    parser.add_argument("--part", default="0/1", help="I/N: of those seeds, the I-th of N parts")
    parser.add_argument("--home", type=Path, help="folder that remembers which seeds were played")
    parser.add_argument("--planted", action="store_true", help="look for the planted bugs")
    asked = parser.parse_args()
    if asked.planted:
        return find_planted()
    if asked.seed is not None:
        played = play(plan_of(asked.seed))
        print(story(shrink(played) if played.broken else played))
        return int(bool(played.broken))
    if not asked.seeds or asked.home is None:
        parser.error("expected a seed, or --seeds N --home FOLDER, or --planted")
    part, parts = (int(word) for word in asked.part.split("/"))
    return many(range(part, asked.seeds, parts), asked.home / f"seeds-{part}-of-{parts}.jsonl")


def many(seeds: range, notes: Path) -> int:
    """Play the seeds that no notes beside these hold yet; print what these notes say then."""
    notes.parent.mkdir(parents=True, exist_ok=True)
    known = {record["seed"] for file in notes.parent.glob("seeds-*.jsonl") for record in noted(file)}
    gc.disable()  # a tenth of the time; collected between the runs
    for number, seed in enumerate(seed for seed in seeds if seed not in known):
        begun = time.process_time()
        plan = plan_of(seed)
        played = play(plan)
        if number % 20 == 0:
            gc.collect()
        facts = {
            "seed": seed,
            "code": code_fingerprint(),
            "case": plan.case,
            "faults": [fault.kind for fault in plan.faults],
            "end": "finished" if played.end == "finished" else "stopped by name",
            "broken": played.broken,
            "seconds": round(time.process_time() - begun, 3),
        }
        append_record(notes, facts)
        for law in played.broken:
            print(f"seed {seed}: {law}", flush=True)
    records = list(noted(notes))
    broken = [record for record in records if record["broken"]]
    speed = len(records) / sum(record["seconds"] for record in records) if records else 0
    print(json.dumps(Counter(record["end"] for record in records)))
    print(f"{len(records)} seeds, {len(broken)} with a broken law; {speed:.1f} a second and core")
    return int(bool(broken))


def noted(notes: Path) -> Iterator[dict[str, Any]]:
    """What the notes say about seeds that were played with this code."""
    return (record for record, _ in read_records(notes) if record.get("code") == code_fingerprint())


def find_planted() -> int:
    """Print the first seed that finds each planted bug."""
    lost = 0
    for name in PLANTED:
        found = first_seed(name)
        lost += found is None
        print(
            f"{name}: " + (f"seed {found.plan.seed}: {found.broken[0]}" if found else "NOT FOUND"), flush=True
        )
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
