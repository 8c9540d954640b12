"""Checks before a run on one machine: data, names and weights are there; and the cost of the run.

Only engines that run all institutions on this machine read data. In a deployment each site checks its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.data_spec import DataSpec
from casam_core.config.scenario import Scenario
from casam_core.config.site_file import simulated_task
from casam_core.errors import CasamError, DataError, ScenarioError
from casam_core.methods import Cohort, alignment_of, check_streams, cohort_at, method_of
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.forms import changes_sam, learning_rate_of, private_forms, rank_of
from casam_core.model.training import planned_steps
from casam_core.routing.routers import build_router
from client.data.open import open_dataset
from client.data.splits import Split, simulated_key
from client.data.task_data import divide
from client.dp.plan import leaves_noisy
from client.simulation.adversaries import attack_of
from scenarios.inspection.survey import read_everything
from server.aggregation import build_strategy

FEW, ENOUGH, MUCH = 50, 3.0, 8.0
"""Private training images of a task below which the other method is advised, and the epsilon from which on
and below which (docs/first-signs.md: at 3 it is ahead with 24 images; at 1 it can end below frozen SAM, and
at 8 it is ahead on some sets and behind on others)."""


@dataclass(frozen=True)
class Cost:
    """Upper bounds of a run's work. encodes: images, fewer if a store holds some. steps: optimiser steps of
    `batch` images. decodes: decoder passes of one image. exchanges: round trips with institutions. advice:
    sentences about settings that make the result better."""

    encodes: int
    steps: int
    batch: int
    decodes: int
    exchanges: int
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.encodes} images to encode (fewer if encoded before), {self.steps} training steps of up "
            f"to {self.batch} images, at most {self.decodes} image decodes, {self.exchanges} exchanges"
        )


Known = dict[tuple[int, str, str, str, bool], Split]
"""Splits of datasets that were read already, by (seed, institution, task, data table, adds noise)."""


def preflight(
    scenario: Scenario,
    data_root: Path | None,
    progress: Callable[[str], None] = lambda name: None,
    known: Known | None = None,
) -> Cost:
    """Open and read everything that the scenario names, and return its cost.

    Args:
        progress: Called with the name of each dataset.
        known: Splits from earlier calls with this data_root, which are not read again; new ones are added.

    Raises:
        CasamError: A name is not registered, or there is one fault of weights or data.
        DataError: There are several faults; the message lists all of them.
    """
    check_streams(scenario)
    for task in scenario.stream:
        alignment = alignment_of(scenario, task)
        learning_rate_of(alignment)
        if alignment.finder and changes_sam(alignment.form):
            raise ScenarioError(
                f"alignment.finder: expected false for task {task!r}, whose form {alignment.form!r} changes "
                "SAM itself; leave it out, or use another form"
            )
    build_router(scenario.router)
    build_strategy(scenario.training)
    for site in scenario.institutions:
        if site.faults.attack is not None:
            attack_of(site.faults.attack)
    known = {} if known is None else known
    faults: list[CasamError] = []
    splits: dict[tuple[str, str], Split] = {}
    with collected(faults):
        load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    for site in scenario.institutions:
        for task, spec in site.data.items():
            progress(f"{site.name}: {task}")
            with collected(faults):
                key = (scenario.seed, site.name, task, spec.model_dump_json(), site.policy.adds_noise)
                if key not in known:
                    known[key] = checked_split(scenario, site.name, task, spec, data_root)
                splits[site.name, task] = known[key]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DataError(
            f"{len(faults)} things are missing or broken:" + "".join(f"\n  - {f}" for f in faults)
        )
    return cost_of(scenario, splits)


@contextlib.contextmanager
def collected(faults: list[CasamError]) -> Iterator[None]:
    """Catch a CasamError and add it to `faults`."""
    try:
        yield
    except CasamError as fault:
        faults.append(fault)


def checked_split(
    scenario: Scenario,
    institution: str,
    task: str,
    spec: DataSpec,
    data_root: Path | None,
    *,
    read: bool = True,
) -> Split:
    """The split of a dataset, after reading every image unless `read` is False. Raises DataError."""
    told = simulated_task(spec, scenario.seed)
    dataset = open_dataset(told, data_root=data_root, seed=scenario.seed, institution=institution)
    policy = scenario.institution(institution).policy
    try:
        if read:
            read_everything(dataset, spec)
        key = simulated_key(scenario.seed, institution)
        return divide(dataset.samples, told, key, f"{institution}/{task}", policy)
    except DataError as error:
        raise DataError(f"institution {institution!r}, task {task!r}: {error}") from error


def cost_of(scenario: Scenario, splits: dict[tuple[str, str], Split]) -> Cost:
    """The cost of a run of `scenario` over these splits. The method decides which institutions train."""
    method, training = method_of(scenario.method), scenario.training
    tests = sum(len(split.part(scenario.evaluation.split)) for split in splits.values())
    trained: set[tuple[str, str]] = set()
    steps, exchanges = 0, 2
    for stage, task in enumerate(scenario.stream, 1):
        exchanges += 2  # identify, evaluate
        if not method.learns:
            continue
        trainers = method.trainers(cohort_of(scenario, stage))
        for name, tasks in trainers.items():
            mine = {key for key in splits if key[1] in tasks and (method.pools or key[0] == name)}
            trained |= mine
            images = sum(len(splits[key].train) for key in mine)
            steps += training.rounds * steps_of(scenario, name, images)
            if alignment_of(scenario, task).personal:
                steps += planned_steps(images, training)
        exchanges += training.rounds
        if not method.shared:
            # router; and calibrate, if a threshold is fitted for several holders
            exchanges += 1 if len(trainers) == 1 or scenario.router.constant is not None else 2
    return Cost(
        encodes=sum(len(splits[key].train) for key in trained) + tests,
        steps=steps,
        batch=training.batch_images,
        decodes=tests * (len(scenario.stream) + 1),
        exchanges=exchanges,
        advice=tuple(advice_on_noise(scenario, splits)),
    )


def advice_on_noise(scenario: Scenario, splits: dict[tuple[str, str], Split]) -> Iterator[str]:
    """A sentence for each task that is learned with noise and would better be learned otherwise."""
    for (name, task), split in splits.items():
        policy, images = scenario.institution(name).policy, len(split.train)
        noisy = task in scenario.stream and leaves_noisy(policy.adapter)
        if noisy and (better := other_training(scenario, task, images, policy.budget.epsilon or 0.0)):
            yield f"{name} learns {task} with noise from {images} images; {better}"


def other_training(scenario: Scenario, task: str, images: int, epsilon: float) -> str | None:
    """What to use for a task that is learned with noise: a form that can be, or the other method; None if
    that is so."""
    alignment, privacy = alignment_of(scenario, task), scenario.privacy
    if alignment.form not in (able := private_forms()):
        known = ", ".join(able)
        return f"the form {alignment.form!r} cannot be, so the layer will be refused: use one of {known}"
    other = privacy.model_copy(update={"method": "public_start"})
    if privacy.method == other.method:
        base = scenario.alignment
        if (alignment.form, rank_of(alignment)) == (base.form, rank_of(base)):
            return None
        return (
            f"the library of a public start is for the form {base.form!r} of `alignment`, so the layer will "
            f'be refused: leave out alignments.{task}, or set privacy.method = "dp_sgd"'
        )
    possible = other.completed(scenario.backbone, alignment).library is not None and not alignment.finder
    if images >= FEW or not ENOUGH <= epsilon < MUCH or not possible:
        return None
    return f'privacy.method = "{other.method}" mostly keeps more of so few (docs/privacy.md)'


def steps_of(scenario: Scenario, name: str, images: int) -> int:
    """Steps of one round at an institution. Those of private training are converted to steps of the
    scenario's batch by the expected number of images; of groups, whose number is unknown here, all count."""
    policy, private = scenario.institution(name).policy, scenario.privacy
    if not leaves_noisy(policy.adapter):
        return planned_steps(images, scenario.training)
    units = images if policy.budget.unit == "image" else 1
    return math.ceil(private.steps * private.rate(units) * images / scenario.training.batch_images)


def cohort_of(scenario: Scenario, stage: int) -> Cohort:
    """The institutions that could train in a stage, if all are present."""
    sites = scenario.institutions
    keeps = [site.name for site in sites if site.policy.keep_samples]
    return cohort_at(scenario, stage, {site.name: site.data for site in sites}, keeps)
