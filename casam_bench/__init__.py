"""Measurements that the documentation quotes; `casam bench` runs them. One file and one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from casam_bench.bench import Benchmark, Figures, Surroundings


def at(place: str) -> Callable[[Surroundings], Figures]:
    """The function MODULE:NAME of this package, imported when it is called: a list needs no torch."""
    module, name = place.split(":")

    def run(around: Surroundings) -> Figures:
        figures: Figures = getattr(importlib.import_module(f"casam_bench.{module}"), name)(around)
        return figures

    return run


MACHINE = "machine"
"""Runs before every other benchmark, because figures of speed depend on the machine."""

BENCHMARKS: dict[str, Benchmark] = {
    MACHINE: Benchmark("This machine, and how fast it multiplies and reads.", at("speed.machine:run")),
    "encode": Benchmark(
        "Images a second through the frozen encoder, plain and fast.", at("speed.encode:run")
    ),
    "train": Benchmark(
        "An epoch from cached embeddings, against encoding in every epoch.", at("speed.train:run")
    ),
    "utilisation": Benchmark(
        "The residual form's step as a share of the GEMM peak.", at("speed.utilisation:run")
    ),
    "evaluate": Benchmark(
        "Decoder passes of the whole matrix: only changes, or everything.", at("speed.evaluate:run")
    ),
    "route": Benchmark("Milliseconds to route an image among 1 to 1000 entries.", at("speed.route:run")),
    "wire": Benchmark(
        "Bytes of an entry, and of a stream; compared with sending the whole bank.",
        at("speed.wire_bytes:run"),
    ),
    "memory": Benchmark("Memory of an institution with 100 and with 10,000 images.", at("speed.memory:run")),
    "scale": Benchmark(
        "9, 100 and 1,000 institutions through Flower, compared with an idle app.", at("speed.scale:run")
    ),
    "growth": Benchmark(
        "9 to 10,000 institutions, 1 to 10,000 tasks, and a cost model. It resumes.",
        at("speed.growth.growth_cells:run"),
        True,
    ),
    "disasters": Benchmark(
        "Many seeds of simulated disasters (--seeds), from a clone. It resumes.",
        at("speed.disaster_runs:run"),
        True,
    ),
    "gpu": Benchmark(
        "The work of institutions on a CUDA card; CASAM_GPU=cpu rehearses it.",
        at("card.card_parts:run"),
        True,
    ),
    "router": Benchmark(
        "How well each router recognises tasks, by number of images.", at("quality.router_quality:run"), True
    ),
    "finder": Benchmark(
        "What finders find without a prompt (--data-root: on real images, too).",
        at("quality.finder_quality:run"),
        True,
    ),
    "clicks": Benchmark(
        "IoU after 0 to 5 simulated clicks, of frozen SAM and of layers (--data-root). It resumes.",
        at("quality.clicks:run"),
        True,
    ),
    "ask": Benchmark(
        "Answers of `casam ask` against full runs of 40 changes (--data-root). It resumes.",
        at("quality.asking.ask_cells:run"),
        True,
    ),
    "few-shot": Benchmark(
        "What each form of Alignment Layer learns in a few steps.", at("quality.few_shot:run"), True
    ),
    "few-shot-real": Benchmark(
        "The same on real nuclei (--data-root), for four forms.", at("quality.few_shot:run_real"), True
    ),
    "few-shot-long": Benchmark(
        "The same after 300 and 1000 steps, on one task.", at("quality.few_shot:run_long"), True
    ),
    "layer-seconds": Benchmark(
        "Forms and recipes at equal processor seconds; --data-root adds real tasks. It resumes.",
        at("quality.layer_seconds:run"),
        True,
    ),
    "private-layers": Benchmark(
        "How much of the open gain private layers of few images keep, by total epsilon (--data-root).",
        at("privacy.private_layers:run"),
        True,
    ),
    "router-noise": Benchmark(
        "Routers with and without noise: quality, and what they tell about members (--data-root).",
        at("quality.frame_quality:run"),
        True,
    ),
    "hostile": Benchmark(
        "Attacks of hostile institutions, and the effect of defences.", at("quality.hostile:run"), True
    ),
    "attack": Benchmark(
        "Privacy attacks with and without noise, on synthetic images.", at("privacy.attack:run"), True
    ),
}

SMOKE = ("encode", "train", "evaluate", "route", "wire", "memory")
"""The benchmarks of the regression guard, which run at small sizes (Surroundings.smoke)."""
