"""The golden runs: small scripted scenarios, and what of a run must not change.

They run in-process with the tiny backbone. What differs between two equal runs by intent (time, request
numbers, masks, signatures, the code's fingerprint) is left out of a record.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casam_core.bank.bank import Bank
from casam_core.config.scenario import Scenario
from casam_core.protocol.audit import read_log
from scenarios.engines.inprocess import GridOf, one_process, run_inprocess
from tests.banks import random_library
from tests.conftest import phantom, tiny_table, with_policies

PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.01},
}
SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
LEAVES = {"leaves_at": 2, "on_leave": "unlearn"}


def site(name: str, *tasks: str, images: int = 12, **more: Any) -> dict[str, Any]:
    """One institution that holds a phantom dataset per task."""
    return {"name": name, "data": {task: phantom(task, images) for task in tasks}} | more


CASES: dict[str, dict[str, Any]] = {
    "open": tiny_table(training={"epochs": 2, "batch_images": 4, "rounds": 2}),
    "dp": with_policies(tiny_table(privacy={"steps": 4}), north=PRIVATE),
    "public": with_policies(
        tiny_table(alignment={"form": "low_rank"}, privacy={"method": "public_start", "steps": 4}),
        north=PRIVATE,
    ),
    "secagg": tiny_table(
        stream=["polyp"], institutions=[site(name, "polyp", images=8, policy=SECRET) for name in "abc"]
    ),
    "unlearn": with_policies(
        tiny_table(stream=["histology", "polyp"]), south=LEAVES, west={"keep_samples": True}
    ),
    "shared": tiny_table(method="ewc"),
    "quarantine": tiny_table(
        stream=["polyp", "histology", "cardiac_mr"],
        institutions=[
            site("north", "polyp", images=24),
            site("south", "histology", images=24),
            site("west", "cardiac_mr", images=24, faults={"attack": "hijack"}),
        ],
    ),
    "vae": tiny_table(router={"kind": "vae", "folds": 2, "features": "attention"}),
}

MAY_DIFFER = ("timing", "environment", "run", "bytes", "scenario_digest")
"""Keys of a summary that are not compared. `bytes`, `scenario_digest`: they follow the text of the
scenario, which a new setting makes longer; every test of traffic compares two runs of one text."""

DRAWN = ("train", "query.forget", "query.identify")
"""Kinds of answers that hold keys, masks, a signature or the code's fingerprint: their digest differs."""


def record(name: str, folder: Path, grid_of: GridOf = one_process) -> dict[str, Any]:
    """Run one case and note what must not change."""
    table = CASES[name]
    if name == "public":
        table = table | {"privacy": table["privacy"] | {"library": random_library("low_rank")}}
    run_inprocess(Scenario.model_validate(table), folder, None, grid_of=grid_of)
    summary = json.loads((folder / "summary.json").read_text())
    for held_back in summary["quarantine"]:
        del held_back["entry"]  # its hash covers the text of the scenario
    for leaving in summary["unlearned"]:
        assert leaving.pop("bank_before") != leaving.pop("bank_after")  # both cover the text of the scenario
    for site_facts in summary["privacy"].values():
        del site_facts["bytes"]
    return {
        "summary": {key: value for key, value in summary.items() if key not in MAY_DIFFER},
        "banks": {
            str(path.parent.relative_to(folder)): learned_in(Bank.open(path.parent))
            for path in sorted(folder.rglob("manifest.json"))
            if path.parent.name != "quarantine"
        },
        "audit": {
            path.parents[1].name: trace_of(path)
            for path in sorted((folder / "institutions").glob("*/private/audit.jsonl"))
        },
    }


def learned_in(bank: Bank) -> dict[str, Any]:
    """By task, the arrays of an entry to the last bit, its threshold, and where it comes from.

    The file's own hash also covers the digest of the scenario's text, which a new setting changes.
    """
    found = {}
    for entry in bank:
        arrays = hashlib.sha256()
        for part in (entry.layer, entry.router):
            for key, value in sorted(part.items()):
                arrays.update(f"{key} {value.dtype.str} {value.shape}\n".encode())
                arrays.update(np.ascontiguousarray(value).tobytes())
        about = entry.provenance
        found[entry.task] = {
            "arrays": arrays.hexdigest(),
            "threshold": entry.threshold,
            "form": about.form,
            "holders": list(about.holders),
            "images": about.images,
            "stage": about.stage,
        }
    return found


def trace_of(log: Path) -> dict[str, Any]:
    """A chain over everything that left one institution, and what it was."""
    head = hashlib.sha256()
    kinds = []
    for line in read_log(log):
        left = line.release
        digest = "" if left.kind in DRAWN or left.outcome != "ok" else left.digest
        words = [left.kind, left.stage, left.round, left.task, left.outcome, left.clause, digest]
        head.update(json.dumps([*words, sorted(left.records), left.epsilon]).encode())
        kinds.append(f"{left.stage} {left.kind} {left.outcome}")
    return {"head": head.hexdigest(), "kinds": kinds}


def arithmetic() -> str:
    """Which last bits this machine computes: a digest of a small fixed computation.

    Other chips round otherwise; there the figures of a golden run are compared, its digests are not.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 16, 16, generator=generator)
    w = torch.randn(16, 16, 3, 3, generator=generator)
    y = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, w, padding=1))
    z = torch.softmax(y.flatten(2) @ y.flatten(2).mT / 100, -1)
    solved = np.linalg.eigh(z[0].double().numpy() + z[0].double().numpy().T)[0]
    return hashlib.sha256(z.numpy().tobytes() + solved.tobytes()).hexdigest()[:16]
