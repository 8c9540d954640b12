"""Anonymous memory of an institution with 100 and with 10,000 images: does it grow with their number?

Each size runs in a separate process: encode, train, describe for the router, evaluate. The figure is RssAnon,
the process's private memory. Pages mapped from the embedding store are not counted, because the system can
take them back. Images are small phantoms on the tiny backbone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from casam_bench.bench import Figures, Surroundings, table_of
from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import prepare_process, resolve_compute
from casam_core.protocol.messages import AlignRequest
from casam_core.protocol.payload import Job
from client.evaluation.own_entries import KnownEntries
from client.institution import Institution
from client.site import hosted_sites

SIZES, SMOKE_SIZES = (100, 10_000), (100, 400)
STEPS, TESTED = 50, 0.1
INSTITUTION, TASK = "north", "polyp"


def run(around: Surroundings) -> Figures:
    """Figures: ratio (small over large: 1 is flat, higher is better), growth (its inverse), mib_N by number
    of images, bytes_per_image."""
    columns = ("images", "after loading", "encoded and trained", "described", "evaluated")
    table = table_of("anonymous memory of an institution, MiB", columns, left=0)
    peak: dict[int, int] = {}
    small, large = SMOKE_SIZES if around.smoke else SIZES
    for images in (small, large):
        around.say(f"memory: an institution with {images} images")
        found = probed(images)
        peak[images] = max(found)
        table.add_row(str(images), *(f"{value / 2**20:.1f}" for value in found))
    around.show(table)
    return {
        "ratio": peak[small] / peak[large],
        "growth": peak[large] / peak[small],
        **{f"mib_{images}": value / 2**20 for images, value in peak.items()},
        "bytes_per_image": (peak[large] - peak[small]) / (large - small),
    }


def probed(images: int) -> list[int]:
    """RssAnon in bytes after every part, in a new process. Raises RunError if the process fails."""
    with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "casam_bench.speed.memory", str(images), folder],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    if done.returncode:
        raise RunError(f"memory: the process with {images} images failed: {done.stderr.strip()[-500:]}")
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def anonymous() -> int:
    """RssAnon of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RunError("memory: expected RssAnon in /proc/self/status, found none; this needs Linux")


@contextmanager
def peak_of(held: Callable[[], int], every: float) -> Iterator[list[int]]:
    """[the most bytes that `held` gave during the with-block]; it is asked `every` so many seconds."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak[0] = max(peak[0], held())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def institution(images: int, folder: Path) -> Institution:
    """The only institution of a scenario, with all its images in one task."""
    source = {
        "reader": "phantom", "phantom": TASK, "images": images, "size": 64, "split": {"test": TESTED},
    }  # fmt: skip
    scenario = Scenario.model_validate(
        {
            "name": "memory",
            "stream": [TASK],
            "backbone": {"name": "tiny"},
            "training": {"max_steps": STEPS, "fallback_to_identity": False},
            "evaluation": {"max_instances": 2},
            "institutions": [{"name": INSTITUTION, "data": {TASK: source}}],
        }
    )
    node = {"partition-id": 0, "num-partitions": 1}
    (site,) = hosted_sites(scenario, "memory", node, {"out": str(folder)})
    site = replace(site, store=folder / "embeddings", public=folder / "embeddings")
    compute = resolve_compute(scenario.compute)
    prepare_process(compute)
    return Institution(site, scenario, load_backbone(scenario.backbone, compute))


def probe(images: int, folder: Path) -> list[int]:
    """One stage of the stream at the institution; returns RssAnon in bytes after every part."""
    north, job = institution(images, folder), Job(INSTITUTION, 1, TASK)
    found = [anonymous()]
    aligned = north.align(AlignRequest(job, layer=None))
    found.append(anonymous())
    described = north.fit_router(job)
    found.append(anonymous())
    bank, own = (Bank.open(folder / name, create=True) for name in ("bank", "own"))
    bank.add(
        make_entry(
            north.scenario,
            north.backbone.digest,
            task=TASK,
            stage=1,
            layer=aligned.layer,
            improved=True,
            holders=(INSTITUTION,),
            images=aligned.images,
            router=described.router,
            threshold=described.threshold,
        )
    )
    north.evaluate(KnownEntries(bank, own))
    return [*found, anonymous()]


if __name__ == "__main__":
    print(json.dumps(probe(int(sys.argv[1]), Path(sys.argv[2]))))
