"""Measurements that the documentation quotes; `casam bench` runs them. One file and one line each."""

from __future__ import annotations

from benchmarks import attack, few_shot, private_training, router_choices, router_quality
from benchmarks.bench import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "router": Benchmark("Which router recognises tasks best, from how many images.", router_quality.run),
    "router-choices": Benchmark(
        "Encoder depths and threshold rules against the default router.", router_choices.run
    ),
    "few-shot": Benchmark("What each form of Alignment Layer learns in a few steps.", few_shot.run),
    "few-shot-long": Benchmark("The same after 300 and 1000 steps, on one task (hours).", few_shot.run_long),
    "privacy": Benchmark("What epsilon costs each form of Alignment Layer.", private_training.run),
    "attack": Benchmark("What attacks find with and without privacy, on synthetic images.", attack.run),
}
