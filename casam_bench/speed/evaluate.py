"""The whole matrix R[t, j] of a long stream: evaluate only changes, or everything again at every stage.

Both sides are the product's own evaluator with the tiny backbone. Ours keeps its earlier results, as an
institution does. The other side keeps only the frozen backbone's row, which both measure once, before the
first stage. A pass is one image through the decoder. The comparison uses results as they are sent: equal
means equal bits.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.synthetic import coloured_task, fresh_store, tiny
from casam_bench.timing import clock
from casam_core.bank.bank import Bank
from casam_core.bank.entries import make_entry
from casam_core.config.scenario import Scenario
from casam_core.methods import method_of
from casam_core.model.backbones import Backbone
from casam_core.model.forms import build_layer, weights_of
from casam_core.protocol.messages import TaskResult
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import learn_alone
from client.data.task_data import TaskData
from client.evaluation.evaluator import MASKS, ROUTES, Evaluator
from client.evaluation.own_entries import KnownEntries
from client.evaluation.results import Results

STAGES, SMOKE_STAGES = (9, 30, 100), (9, 20)
TRAIN, TEST = 12, 1
SEED, INSTITUTION = 7, "bench"


def run(around: Surroundings) -> Figures:
    """Figures by number of stages T: passes_ratio_T, passes_T, seconds_ratio_T, with_frozen_ratio_T (the
    frozen backbone's row counted on both sides); identical (1 or 0); rerouted (images per stage)."""
    with tempfile.TemporaryDirectory(prefix="casam-bench-") as folder:
        return measure(around, Path(folder), SMOKE_STAGES if around.smoke else STAGES)


def measure(around: Surroundings, folder: Path, rows: Sequence[int]) -> Figures:
    """One stream with as many stages as the largest of `rows`; shorter streams are its first stages."""
    backbone, now = tiny(around.threads), clock(around.threads)
    store, scenario = fresh_store(folder), scenario_of(max(rows))
    tasks = [coloured_task(i, train=TRAIN, test=TEST, store=store) for i in range(max(rows))]
    bank, own = Bank.open(folder / "bank", create=True), Bank.open(folder / "own", create=True)

    ours = Side(scenario, backbone, folder / "ours")
    ours.evaluate(tasks, KnownEntries(bank, own))
    ours.passes = 0
    anew = Side(scenario, backbone, folder / "anew")
    shutil.copy(ours.folder / MASKS, folder / "frozen.jsonl")

    figures: Figures = {"identical": 1.0}
    columns = ("stages", "passes anew", "passes ours", "ratio", "ceiling", "seconds ratio", "rerouted")
    table = table_of(f"the whole matrix, {TEST} image a task: decoder passes and seconds", columns, left=0)
    for stage in range(1, max(rows) + 1):
        learn(scenario, stage, tasks[stage - 1], backbone, bank)
        seen = tasks[:stage]
        begun = now()
        results = ours.evaluate(seen, KnownEntries(bank, own))
        between = now()
        anew.forget(folder / "frozen.jsonl")
        again = anew.evaluate(seen, KnownEntries(bank, own))
        ours.seconds, anew.seconds = ours.seconds + between - begun, anew.seconds + now() - between
        if results != again:
            figures["identical"] = 0.0
        if stage not in rows:
            continue
        images = TEST * stage
        figures |= {
            f"passes_ratio_{stage}": anew.passes / ours.passes,
            f"passes_{stage}": float(ours.passes),
            f"with_frozen_ratio_{stage}": (anew.passes + images) / (ours.passes + images),
            f"seconds_ratio_{stage}": anew.seconds / ours.seconds,
        }
        table.add_row(
            str(stage),
            str(anew.passes),
            str(ours.passes),
            f"{anew.passes / ours.passes:.1f}",
            f"{(stage + 1) / 2:.1f}",
            f"{anew.seconds / ours.seconds:.1f}",
            str(ours.passes - images),
        )
        around.say(f"evaluate: {stage} stages")
    around.show(table)
    around.say("evaluate: results " + ("are the same bits" if figures["identical"] else "DIFFER"))
    return figures


def scenario_of(tasks: int) -> Scenario:
    """A scenario with default settings, for the entries' provenance."""
    table = {
        "name": "evaluate",
        "stream": [name_of(i) for i in range(tasks)],
        "backbone": {"name": "tiny"},
        "institutions": [{"name": INSTITUTION, "data": {name_of(i): {"path": "none"} for i in range(tasks)}}],
    }
    return Scenario.model_validate(table)


def name_of(number: int) -> str:
    return f"task-{number}"


def learn(scenario: Scenario, stage: int, data: TaskData, backbone: Backbone, bank: Bank) -> None:
    """Add an entry that is not the identity; its training does not matter here."""
    layer = build_layer(scenario.alignment, backbone.geometry.channels, stage)
    generator = torch.Generator().manual_seed(stage)
    for parameter in layer.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    f_NF = data.features(data.split.train, backbone, scenario.router.features)
    state, threshold = learn_alone(build_router(scenario.router), f_NF, scenario.router, stage)
    bank.add(
        make_entry(
            scenario,
            backbone.digest,
            task=name_of(stage - 1),
            stage=stage,
            layer=weights_of(layer),
            improved=True,
            holders=(INSTITUTION,),
            images=TRAIN,
            router=state,
            threshold=threshold,
        )
    )


class Side:
    """One way to evaluate, with its stored results, decoder passes and seconds."""

    def __init__(self, scenario: Scenario, backbone: Backbone, folder: Path) -> None:
        folder.mkdir()
        self.scenario, self.backbone, self.folder = scenario, backbone, folder
        self.passes, self.seconds = 0, 0.0
        self.evaluator = self._evaluator()

    def _evaluator(self) -> Evaluator:
        return Evaluator(
            institution=INSTITUTION,
            seed=SEED,
            spec=self.scenario.evaluation,
            features=self.scenario.router.features,
            route_rule=method_of(self.scenario.method).route,
            router=build_router(self.scenario.router),
            backbone=self.backbone,
            routes=Results(self.folder / ROUTES),
            masks=Results(self.folder / MASKS),
        )

    def forget(self, frozen: Path) -> None:
        """Start again from the frozen backbone's row."""
        (self.folder / ROUTES).unlink()
        shutil.copy(frozen, self.folder / MASKS)
        self.evaluator = self._evaluator()

    def evaluate(self, tasks: Sequence[TaskData], known: KnownEntries) -> list[TaskResult]:
        """Every task's result in the form in which an institution sends it."""
        results, before = [], self.evaluator.decodes
        for number, data in enumerate(tasks):
            measured = self.evaluator.measure(name_of(number), data, known, lambda done, total: None)
            results.append(self.evaluator.result(name_of(number), measured))
        self.passes += self.evaluator.decodes - before
        return results
