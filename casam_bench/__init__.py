"""Measurements that the documentation quotes; `casam bench` runs them. One file and one line each."""

from __future__ import annotations

from casam_bench.bench import Benchmark
from casam_bench.privacy import attack, private_routers, private_training
from casam_bench.quality import few_shot, hostile, router_quality
from casam_bench.speed import encode, evaluate, machine, memory, route, scale, train, utilisation, wire_bytes

MACHINE = "machine"
"""Runs before every other benchmark, because figures of speed depend on the machine."""

BENCHMARKS: dict[str, Benchmark] = {
    MACHINE: Benchmark("This machine, and how fast it multiplies and reads.", machine.run),
    "encode": Benchmark("Images a second through the frozen encoder, plain and fast.", encode.run),
    "train": Benchmark("An epoch from cached embeddings, against encoding in every epoch.", train.run),
    "utilisation": Benchmark("The residual form's step as a share of the GEMM peak.", utilisation.run),
    "evaluate": Benchmark("Decoder passes of the whole matrix: only changes, or everything.", evaluate.run),
    "route": Benchmark("Milliseconds to route an image among 1 to 1000 entries.", route.run),
    "wire": Benchmark(
        "Bytes of an entry, and of a stream; compared with sending the whole bank.", wire_bytes.run
    ),
    "memory": Benchmark("Memory of an institution with 100 and with 10,000 images.", memory.run),
    "scale": Benchmark("9, 100 and 1,000 institutions through Flower, compared with an idle app.", scale.run),
    "router": Benchmark(
        "How well each router recognises tasks, by number of images.", router_quality.run, True
    ),
    "few-shot": Benchmark("What each form of Alignment Layer learns in a few steps.", few_shot.run, True),
    "few-shot-real": Benchmark(
        "The same on real nuclei (--data-root), for four forms.", few_shot.run_real, True
    ),
    "few-shot-long": Benchmark("The same after 300 and 1000 steps, on one task.", few_shot.run_long, True),
    "privacy": Benchmark("IoU of the small forms of Alignment Layer by epsilon.", private_training.run, True),
    "privacy-large": Benchmark("The same for the forms of 14 MB.", private_training.run_large, True),
    "private-router": Benchmark("Quality of each kind of router by epsilon.", private_routers.run, True),
    "hostile": Benchmark("Attacks of hostile institutions, and the effect of defences.", hostile.run, True),
    "attack": Benchmark("Privacy attacks with and without noise, on synthetic images.", attack.run, True),
}

SMOKE = ("encode", "train", "evaluate", "route", "wire", "memory")
"""The benchmarks of the regression guard, which run at small sizes (Surroundings.smoke)."""
