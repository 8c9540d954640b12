"""Bytes of an entry, and bytes that an institution receives and sends over a stream of 9 and of 100 stages.

The bytes are counted in whole runs of the in-process engine, which serialises messages in both directions.
The other side is the same run with the whole bank sent at every stage; its requests are built and serialised,
not estimated. The tiny backbone's entries are smaller than real ones. So the figures without `tiny` in their
name replace the counted entries by real ones (256 channels, 512 router features, 48 images) and keep all
other bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from casam_bench.bench import Figures, Surroundings, table_of
from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.bank.entry_file import Entry
from casam_core.config.named_parts import SHIPPED_FRAMES, AlignmentSpec, PublicFrameSpec, RouterSpec
from casam_core.config.scenario import BankSpec, Scenario
from casam_core.model.forms import LowRankSpec, build_layer, weights_of
from casam_core.protocol.messages import EvaluateRequest
from casam_core.protocol.payload import Job
from casam_core.protocol.wire import serialise, to_records
from casam_core.routing.routers import GaussianSpec, VaeSpec, build_router
from server.run.summary_schema import read_summary

STAGES, SMOKE_STAGES = (9, 100), (6,)
INSTITUTIONS = 3
MODALITIES = ("polyp", "histology", "cardiac_mr", "glomeruli_a", "spleen_ct", "dental_xray", "prostate_mr_a")
CHANNELS, FEATURES, IMAGES = 256, 512, 48
COMPARED = 10
"""Stages at either end of a stream."""
EXACT = BankSpec(precision="float32")
DEFAULT = PublicFrameSpec(frame=SHIPPED_FRAMES["lite_medsam", "moments"])


def run(around: Surroundings) -> Figures:
    """Figures: entry_bytes, layer_bytes, content_bytes (layer and router, as they are sent up),
    paper_over_ours (the paper's layer over our whole entry), paper_layer_over_ours, paper_entry_over_ours;
    entry_bytes and paper_over_ours again with bank.precision float32, and with a Gaussian router; by
    number of stages T: ratio_T (whole bank over ours), over_entries_T (ours, down, over T entries),
    tiny_ratio_T, kib_T (an institution's bytes both ways), stage_growth_T (seconds of a stage among the last
    over one among the first, server and institutions together; streams of 40 stages and more)."""
    figures = entry_figures(around)
    columns = ("stages", "whole bank, KiB", "ours, KiB", "ratio", "ours / entries", "tiny: ratio")
    table = table_of("bytes of an institution over a stream, mean of three", columns, left=0)
    for stages in SMOKE_STAGES if around.smoke else STAGES:
        with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
            scenario = scenario_of(stages)
            around.engines.inprocess(scenario, Path(folder) / "run")
            counted = count(Path(folder) / "run", scenario)
            seconds = stage_seconds(Path(folder) / "run")
        entry = figures["entry_bytes"]
        # Every institution also sends the layer and the router of its own tasks, a third of them.
        up = counted.up - counted.sent + figures["content_bytes"] * stages / INSTITUTIONS
        down = counted.down - counted.entries + entry * stages
        ours = up + down
        whole = ours + entry * stages * (stages - 1) / 2
        figures |= {
            f"ratio_{stages}": whole / ours,
            f"over_entries_{stages}": down / (stages * entry),
            f"tiny_ratio_{stages}": (counted.up + counted.whole_bank) / (counted.up + counted.down),
            f"tiny_over_entries_{stages}": counted.down / counted.entries,
            f"kib_{stages}": ours / 1024,
            **({f"stage_growth_{stages}": growth(seconds)} if stages >= 4 * COMPARED else {}),
        }
        table.add_row(
            str(stages),
            f"{whole / 1024:.0f}",
            f"{ours / 1024:.0f}",
            f"{whole / ours:.1f}",
            f"{figures[f'over_entries_{stages}']:.3f}",
            f"{figures[f'tiny_ratio_{stages}']:.1f}",
        )
    around.show(table)
    return figures


def entry_figures(around: Surroundings) -> Figures:
    """Bytes of real entries: ours, and the paper's form with the paper's router."""
    ours = real_entry(LowRankSpec(), DEFAULT)
    exact = real_entry(LowRankSpec(), DEFAULT, EXACT)
    gaussian = real_entry(LowRankSpec(), GaussianSpec())
    paper = real_entry(AlignmentSpec(form="casam"), VaeSpec(features="attention"), EXACT)
    layer, paper_layer = layer_bytes(ours), layer_bytes(paper)
    entry, paper_entry = len(ours.to_bytes()), len(paper.to_bytes())
    around.say(
        f"an entry has {entry} bytes, {layer} of them the layer; in float32 {len(exact.to_bytes())}, with a "
        f"Gaussian router {len(gaussian.to_bytes())}; the paper's layer has {paper_layer}, with its router "
        f"{paper_entry}"
    )
    return {
        "entry_bytes": float(entry),
        "layer_bytes": float(layer),
        "content_bytes": float(content_bytes(ours)),
        "paper_over_ours": paper_layer / entry,
        "paper_layer_over_ours": paper_layer / layer,
        "entry_bytes_float32": float(len(exact.to_bytes())),
        "paper_over_ours_float32": paper_layer / len(exact.to_bytes()),
        "entry_bytes_gaussian": float(len(gaussian.to_bytes())),
        "paper_over_ours_gaussian": paper_layer / len(gaussian.to_bytes()),
        "paper_entry_over_ours": paper_entry / entry,
    }


def layer_bytes(entry: Entry) -> int:
    return sum(weights.nbytes for weights in entry.layer.values())


def content_bytes(entry: Entry) -> int:
    """Bytes of the entry's numbers as institutions send them: float32, also if the bank stores float16."""
    return 4 * sum(value.size for value in (*entry.layer.values(), *entry.router.values()))


def real_entry(alignment: AlignmentSpec, router: RouterSpec, bank: BankSpec | None = None) -> Entry:
    """An entry with the shapes of LiteMedSAM and SAM. Its values do not matter for its size."""
    f_NF = torch.randn(IMAGES, FEATURES, generator=torch.Generator().manual_seed(0))
    if router.features == "attention":
        f_NF = f_NF[:, :CHANNELS]
    asked = {"alignment": alignment, "router": router, "bank": bank or BankSpec()}
    scenario = scenario_of(1).model_copy(update=asked)
    made = build_router(router.model_copy(update={"epochs": 1}))
    return make_entry(
        scenario,
        "0" * 64,
        task="task-0",
        stage=1,
        layer=weights_of(build_layer(alignment, CHANNELS, 0)),
        improved=True,
        holders=("institution-0",),
        images=IMAGES,
        router=made.fit(made.sufficient_statistics(f_NF, 0)),
        threshold=1.0,
    )


def scenario_of(stages: int) -> Scenario:
    """A minimal scenario: tasks shared out to three institutions, with a few small phantoms each."""
    data: list[dict[str, Any]] = [{} for _ in range(INSTITUTIONS)]
    for number in range(stages):
        phantom = MODALITIES[number % len(MODALITIES)]
        source = {"reader": "phantom", "phantom": phantom, "images": 16, "size": 64}
        if phantom in ("cardiac_mr", "spleen_ct", "prostate_mr_a"):
            source["images"] = 24  # four slices of each of six patients
        data[number % INSTITUTIONS][f"task-{number}"] = source
    return Scenario.model_validate(
        {
            "name": "wire",
            "stream": [f"task-{number}" for number in range(stages)],
            "backbone": {"name": "tiny"},
            "training": {"epochs": 1, "fallback_to_identity": False, "instances": 1},
            "router": {"folds": 2},
            "evaluation": {"max_instances": 1},
            "institutions": [
                {"name": f"institution-{i}", "data": held} for i, held in enumerate(data) if held
            ],
        }
    )


@dataclass(frozen=True)
class Counted:
    """Mean bytes of an institution over a run. up, down: sent by it, to it. sent: layers and routers sent by
    it. entries: entry files sent to it. whole_bank: down, if every stage sent the whole bank."""

    up: float
    down: float
    sent: float
    entries: float
    whole_bank: float


def count(folder: Path, scenario: Scenario) -> Counted:
    """Count from the run's summary and its bank."""
    traffic = read_summary(folder).bytes
    bank = Bank.open(folder / "bank")
    files = [bank.bytes_of(task) for task in bank.tasks]
    names = [site.name for site in scenario.institutions]
    up, down = (sum(counted.values()) / len(names) for counted in (traffic.up, traffic.down))
    more = sum(
        evaluate_bytes(names[0], stage, 0, files[:stage], bank)
        - evaluate_bytes(names[0], stage, stage - 1, files[stage - 1 : stage], bank)
        for stage in range(1, len(files) + 1)
    )
    return Counted(
        up=up,
        down=down,
        sent=sum(map(content_bytes, bank)) / len(names),
        entries=float(sum(map(len, files))),
        whole_bank=down + more,
    )


def stage_seconds(folder: Path) -> list[float]:
    """Seconds of every stage, from the end of the stage before it to its own end."""
    lines = (json.loads(text) for text in (folder / "events.jsonl").read_text().splitlines())
    ends = [float(line["time"]) for line in lines if line["event"] == "evaluated"]
    return [later - earlier for earlier, later in pairwise(ends)]


def growth(seconds: Sequence[float]) -> float:
    """Median seconds of the last stages over those of early stages, without the first ones (warm-up)."""
    return median(seconds[-COMPARED:]) / median(seconds[COMPARED : 2 * COMPARED])


def evaluate_bytes(name: str, stage: int, known: int, entries: Sequence[bytes], bank: Bank) -> int:
    """The serialised size of one evaluate request."""
    return len(
        serialise(to_records(EvaluateRequest(Job(name, stage), known, entries, bank.digest).to_payload()))
    )
