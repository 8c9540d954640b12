"""The institution: everything it does with its own data. This module does not use Flower.

The return value of a method may leave if the policy allows it (client/release/permission.py). Files that it
writes to `site.store` and `site.private` stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from casam_core.bank.bank import Bank, updated_copy
from casam_core.config.public_files import digest_of_file
from casam_core.config.scenario import Scenario, TrainingSpec
from casam_core.errors import BankError
from casam_core.files import make_folder
from casam_core.methods import Penalty, alignment_of, first_layer, method_of
from casam_core.model.backbones import Backbone
from casam_core.model.embeddings import EmbeddingStore
from casam_core.model.examples import Examples
from casam_core.model.forms import AlignmentLayer, Weights, learning_rate_of, set_weights, weights_of
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.layer_library import LIBRARIES, LayerLibrary, library_named, public_files_of
from casam_core.model.training import OpenSteps, Progress, Steps, importance_of, train_layer
from casam_core.model.validation import (
    TESTED_INSTANCES,
    BestEpoch,
    Validate,
    beats_identity,
    take_best,
    validator,
)
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    EvaluateReply,
    EvaluateRequest,
    Holding,
    Layer,
    RouterReply,
    may_correct,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job
from casam_core.routing.decision import margin_histogram
from casam_core.routing.features import width_of
from casam_core.routing.public_frames import FRAMES, PublicFrame, axes_of
from casam_core.routing.routers import build_router
from casam_core.routing.threshold import fold_statistics, held_out_scores, learn_alone, score_histogram
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.data.dataset import Sample
from client.data.open import location_of
from client.data.splits import SplitPart
from client.data.task_data import StoredExamples, TaskData, open_task, private_units
from client.drift import ControlVariate, Term, proximal
from client.evaluation.evaluator import MASKS, ROUTES, Evaluator, Measured
from client.evaluation.results import Results
from client.node.worktime import reporter
from client.simulation.kept_training import trained_once
from client.site import Site

if TYPE_CHECKING:
    from client.evaluation.own_entries import KnownEntries


def train_round(
    scenario: Scenario,
    task: str,
    layer: AlignmentLayer,
    backbone: Backbone,
    examples: Examples,
    steps: Steps,
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    """Train `layer` in place for one round, as an institution of the scenario does with these images.

    casam_bench/membership/shadows.py trains its shadow models with the same function.
    """
    train_layer(
        layer,
        backbone,
        examples,
        scenario.training,
        learning_rate=learning_rate_of(alignment_of(scenario, task)),
        rng=rng,
        progress=progress,
        steps=steps,
    )


class Institution:
    """One data owner, taking part in one run."""

    def __init__(self, site: Site, scenario: Scenario, backbone: Backbone) -> None:
        self.site = site
        self.scenario = scenario
        self.backbone = backbone
        self.router = build_router(scenario.router, site.folder_of(FRAMES))
        self._tasks: dict[str, TaskData] = {}
        make_folder(site.private, 0o700)

    draw = 0
    """Number of the draw of simulated noise: another one changes the noise and nothing else."""

    @property
    def trained(self) -> Path:
        """Folder of kept training (client/simulation/kept_training.py)."""
        return self.site.private / "trained"

    @property
    def name(self) -> str:
        """The institution's name in the scenario."""
        return self.site.institution

    @property
    def personal(self) -> bool:
        """Whether the scenario asks for personal entries (client/evaluation/personal.py)."""
        return any(alignment_of(self.scenario, task).personal for task in self.scenario.stream)

    def learn_public(self, files: Sequence[bytes]) -> None:
        """Keep the public files that came with the scenario, and check that all it names are here.

        Raises RefusalError: other-public-file for a file that the approved scenario does not name or that has
        another form; unknown-scenario if one is missing, so that the server sends it.
        """
        named = {digest: kind for kind, digest in public_files_of(self.scenario)}
        try:
            for data in files:
                digest = digest_of_file(data)
                if digest not in named:
                    raise BankError(f"expected a public file of the scenario, found {digest[:12]}")
                named[digest].keep(data, self.site.folder_of(named[digest]))
        except BankError as error:
            raise RefusalError(Outcome.OTHER_PUBLIC_FILE, str(error)) from error
        try:
            found = [kind.get(digest, self.site.folder_of(kind)) for digest, kind in named.items()]
        except BankError as error:
            raise RefusalError(Outcome.UNKNOWN_SCENARIO, str(error)) from error
        width = width_of(self.scenario.router.features, self.backbone.geometry.channels)
        for content in found:
            if isinstance(content, PublicFrame) and content.axes_FK.shape != (width, axes_of(width)):
                raise RefusalError(
                    Outcome.OTHER_PUBLIC_FILE, f"the frame does not fit features of {width} values"
                )

    def library(self) -> LayerLibrary:
        """The public library of layers that the scenario names. Raises BankError if it is not here."""
        return LIBRARIES.get(library_named(self.scenario), self.site.folder_of(LIBRARIES))

    def holdings(self) -> dict[str, Holding]:
        """Image counts of every task held here. Raises DataError."""
        return {task: self.task(task).holding for task in self.site.tasks}

    @property
    def held(self) -> Collection[str]:
        """The tasks of which there are images here."""
        return self.site.tasks.keys()

    def task(self, task: str) -> TaskData:
        """This institution's images of `task`; the dataset is opened once."""
        if task not in self._tasks:
            self._tasks[task] = open_task(
                self.site.tasks[task],
                task=task,
                institution=self.name,
                data_root=self.site.data_root,
                store=EmbeddingStore(self.site.store),
                key=self.site.split_key,
                policy=self.site.policy,
            )
        return self._tasks[task]

    def dataset(self, task: str) -> str:
        """Location of the task's images; it identifies them under every task name."""
        return location_of(self.site.tasks[task], self.site.data_root, self.name)

    def align(self, request: AlignRequest, others: Sequence[Institution] = ()) -> AlignReply:
        """Train a layer for one round on this institution's images of the request's tasks.

        Args:
            others: institutions whose images are pooled with these (simulations only).
        """
        return trained_once(self, request, lambda: self.train(request, others))

    def train(self, request: AlignRequest, others: Sequence[Institution]) -> AlignReply:
        """`align`, without a look at what was kept."""
        job, method, training = request.job, method_of(self.scenario.method), self.scenario.training
        layer = self.layer(job.task, request.layer)
        examples = self.examples(request.trains_on, "train", layer, others)
        may_fall_back = (
            training.fallback_to_identity
            and job.round == training.rounds
            and method.can_fall_back(alignment_of(self.scenario, job.task).form)
        )
        chooses = training.keep_best and not self.site.policy.adds_noise
        corrects = may_correct(self.scenario, job, self.site.policy)
        validate = self.validator(request, layer, training) if chooses else None
        self.choose_start(request, layer, validate)
        best = BestEpoch(validate, training.patience) if validate else None
        term: Term | None = self.penalty(request)
        if training.strategy == "fedprox":
            term = proximal(layer, training.proximal, term)
        control = ControlVariate(request.control) if training.strategy == "scaffold" else None
        steps = OpenSteps(term, best, control)
        report = reporter(self.name, f"train {job.task}")
        draws = self.draws(job, "align")
        train_round(self.scenario, job.task, layer, self.backbone, examples, steps, draws, report)
        if best:
            best.restore(layer)
        importance = improved = correction = None
        if method.weighs:
            importance = importance_of(
                layer, self.backbone, examples, training, self.draws(job, "importance")
            )
        tested = training.model_copy(update={"instances": TESTED_INSTANCES})
        if (may_fall_back or corrects) and (test := self.validator(request, layer, tested)):
            found = test(layer)
            correction = found.correction if corrects else None
            if may_fall_back:
                improved = beats_identity(found, test(IdentityLayer(self.backbone.geometry.channels)))
        told = control.mean(layer) if control else None
        return AlignReply(weights_of(layer), len(examples), importance, improved, correction, told)

    def layer(self, task: str, weights: Layer | None) -> AlignmentLayer:
        """A layer of `task` with these weights, or with the initial weights of all holders if None.

        Its finder learns only if the policy allows it.
        """
        layer = first_layer(
            self.scenario,
            task,
            self.backbone.geometry.channels,
            self.backbone,
            self.site.folder_of(LIBRARIES),
        )
        if weights is not None:
            set_weights(layer, weights)
        if layer.finder is not None:
            layer.finder.requires_grad_(self.site.policy.finder == "yes")
        return layer

    def choose_start(self, request: AlignRequest, layer: AlignmentLayer, judge: Validate | None) -> None:
        """Give a new layer the best of its `starts`; nothing without a judge."""
        if judge is not None and request.layer is None:
            take_best(layer, self.starts(request.job.task, layer), judge)

    def starts(self, task: str, layer: AlignmentLayer) -> list[Weights]:
        """The weights from which training without noise may start."""
        if alignment_of(self.scenario, task).start == "library" and self.library().fits(layer):
            return list(self.library().starts().values())
        return [weights_of(layer)]

    def examples(
        self, tasks: Sequence[str], part: SplitPart, layer: AlignmentLayer, others: Sequence[Institution] = ()
    ) -> StoredExamples:
        """Images of one split of `tasks`, here and at `others`, as `layer` sees them."""
        items: list[tuple[TaskData, Sample]] = []
        for site in (self, *others):
            for task in tasks:
                if task in site.site.tasks:
                    data, samples = site.encoded(task, part)
                    items += [(data, sample) for sample in samples]
        return StoredExamples(items, self.backbone, layer.sees_pixels)

    def penalty(self, request: AlignRequest) -> Penalty | None:
        """The method's additional loss term against forgetting; None if it has none."""
        method = method_of(self.scenario.method)
        if request.anchor is None or method.penalty is None:
            return None
        anchor = self.layer(request.job.task, request.anchor)
        anchor.requires_grad_(False).to(self.backbone.compute.device)
        return method.penalty(anchor, self.backbone, request.importance)

    def validator(self, request: AlignRequest, layer: AlignmentLayer, spec: TrainingSpec) -> Validate | None:
        """A function that measures layers like `layer` on validation images of the tasks that the request
        trains on; None without such images here."""
        examples = self.examples(request.trains_on, "val", layer)
        return validator(examples, self.backbone, spec, self.draws(request.job, "validate"))

    def draws(self, job: Job, purpose: str) -> np.random.Generator:
        """The random generator of this round for one purpose."""
        return numpy_generator(self.scenario.seed, self.name, job.stage, job.round, purpose)

    def router_statistics(self, job: Job) -> RouterReply:
        """Sufficient statistics of all images, and without each fold, for the server to merge.

        Without the folds if all tasks have one threshold.
        """
        spec = self.scenario.router
        f_NF, seed = self.described(job)
        return RouterReply(
            router=self.router.sufficient_statistics(f_NF, seed),
            images=len(f_NF),
            folds=() if spec.constant is not None else fold_statistics(self.router, f_NF, spec, seed),
        )

    def fit_router(self, job: Job) -> RouterReply:
        """The fitted router, and the threshold from held-out scores unless all tasks have one threshold."""
        f_NF, seed = self.described(job)
        if self.scenario.router.constant is not None:
            state = self.router.fit(self.router.sufficient_statistics(f_NF, seed))
            return RouterReply(router=state, images=len(f_NF))
        state, threshold = learn_alone(self.router, f_NF, self.scenario.router, seed)
        return RouterReply(router=state, images=len(f_NF), threshold=threshold)

    def described(self, job: Job) -> tuple[Tensor, int]:
        """(f_NF of the task's training images, the router's seed)."""
        spec = self.scenario.router
        data, samples = self.encoded(job.task, "train")
        f_NF = data.features(samples, self.backbone, spec.features)
        # All holders start from the same router: networks with different initial weights cannot be averaged.
        seed = derive_seed(self.scenario.seed, job.stage, "router", job.task)
        return f_NF, seed

    def calibrate(self, request: CalibrateRequest) -> CalibrateReply:
        """Score the held-out images of every fold under the holders' merged routers."""
        f_NF, _ = self.described(request.job)
        folds = self.scenario.router.folds
        return CalibrateReply(score_histogram(held_out_scores(self.router, f_NF, request.folds, folds)))

    def evaluate(self, known: KnownEntries) -> EvaluateReply:
        """Score the test images of every task held here under the current entries."""
        evaluator = self.evaluator()
        measured = self.measured(known, evaluator)
        return EvaluateReply(
            {task: evaluator.result(task, of_task) for task, of_task in measured.items()},
            evaluator.decodes,
            {
                task: margin_histogram(of_task.margins)
                for task, of_task in measured.items()
                if of_task.margins
            },
        )

    def measured(self, known: KnownEntries, evaluator: Evaluator | None = None) -> dict[str, Measured]:
        """Route and segment every test image of every task held here under the current entries."""
        evaluator = evaluator or self.evaluator()
        found = {}
        for task in sorted(self.site.tasks):
            data_of_task, _ = self.encoded(task, self.scenario.evaluation.split)
            report = reporter(self.name, f"evaluate {task}")
            found[task] = evaluator.measure(task, data_of_task, known, report)
        return found

    def updated_bank(self, request: EvaluateRequest) -> Bank:
        """This institution's copy of the bank with the new entries. Raises BankError."""
        return updated_copy(self.site.private / "bank", request.known, request.entries, request.bank)

    def encoded(self, task: str, part: SplitPart) -> tuple[TaskData, tuple[Sample, ...]]:
        """The task's data and one of its splits; the embeddings of its images are in the store afterwards."""
        data = self.task(task)
        samples = data.split.part(part)
        data.encode(samples, self.backbone, reporter(self.name, f"encode {task}"))
        return data, samples

    def units(self, task: str, part: SplitPart) -> Units:
        """The units that the policy protects in one split of a task, and the public counts of them."""
        return private_units(self.task(task), self.site.policy, part)

    def noise(self, job: Job, kind: str) -> NoiseSource:
        """Noise from the operating system. In a simulation the noise is seeded and protects no data."""
        if not self.site.simulated:
            return NoiseSource.from_system()
        draw = (self.draw,) if self.draw else ()
        scope = (self.name, job.stage, job.round, "noise", kind, job.task, *draw)
        return NoiseSource.seeded(self.scenario.seed, *scope)

    def private_draws(self, job: Job, purpose: str) -> Draws:
        """The draws of this round inside a private computation, one generator for each item."""
        return Draws(self.scenario.seed, (self.name, job.stage, job.round, purpose))

    def evaluator(self) -> Evaluator:
        """A new evaluator with all results of this run so far, including those of other processes."""
        return Evaluator(
            institution=self.name,
            seed=self.scenario.seed,
            spec=self.scenario.evaluation,
            features=self.scenario.router.features,
            route_rule=method_of(self.scenario.method).route,
            router=self.router,
            backbone=self.backbone,
            routes=Results(self.site.private / ROUTES),
            masks=Results(self.site.private / MASKS),
        )
