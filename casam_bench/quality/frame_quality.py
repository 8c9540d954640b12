"""Routers with and without noise: do they recognise tasks, and what does a state tell about its images?

Tasks: phantoms of every modality and, with --data-root, every folder of real images in it. In each draw a
third of the tasks is unseen. Every other task is learned from IMAGES images, and all other images test it. A
row with an epsilon is a task with that budget, of which the router may cost a share (privacy.router_share). A
threshold is paid for as well, if the router has one per task.

`member_score` is the AUC of the score, for images that made the state against test images of the same task.
`member_ratio` is that of a likelihood ratio: the score, compared with the scores under SHADOWS states that
the attacker made from halves of all these images.

Frames of a sequence drift, so each is also learned from frames that follow one another, and all later ones
test it: `lost_in_time` is the share of them that is sent to frozen SAM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.membership.fit import fits_of
from casam_bench.membership.likelihood_ratio import online, shadow_parts
from casam_bench.membership.statistics import auc
from casam_bench.quality.layer_seconds import SEQUENCES
from casam_bench.quality.phantom_features import Features as AllKinds
from casam_bench.quality.phantom_features import folder_features, phantom_features
from casam_bench.quality.router_quality import TASKS, Scores, judge
from casam_core.config.data_spec import DataSpec
from casam_core.config.named_parts import BackboneSpec, RouterSpec
from casam_core.config.scenario import PrivacySpec
from casam_core.model.backbones import Backbone
from casam_core.privacy.accounting import calibrate
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_scores import describe_scores, scores_like
from casam_core.privacy.units import single_images
from casam_core.routing.routers import (
    Arrays,
    GaussianSpec,
    PublicFrameSpec,
    Router,
    build_router,
    router_entry,
)
from casam_core.routing.routers.base import NoisyStatistics, PrivateRouter
from casam_core.routing.threshold import choose_threshold, learn_and_score
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.data.open import open_dataset
from client.data.splits import in_time
from client.dp.noisy_router import public_features_of
from client.dp.plan import description

IMAGES, TEST_IMAGES, REAL_IMAGES = 24, 12, 64
"""Training images of a task; test images of a phantom task; most images of a real one."""
DRAWS, ATTACKED, SHADOWS = 20, 3, 16
"""Draws; tasks of a draw that are attacked; the attacker's states of each."""
DRAWN, DELTA = 512, 1e-3
PRIVACY, BACKBONE = PrivacySpec(), BackboneSpec(name="lite_medsam")
Row = tuple[float, float]
"""(epsilon of a task, the share of it that the router alone may cost)."""
CANDIDATES: tuple[tuple[RouterSpec, tuple[Row | None, ...]], ...] = (
    (PublicFrameSpec(), (None, (8.0, 0.5), (3.0, 0.5), (1.0, 0.9), (1.0, 0.5))),
    (PublicFrameSpec(threshold="fitted"), (None,)),
    (GaussianSpec(), (None, (3.0, 0.5))),
)
"""Routers and their rows, None without noise; a noisy Gaussian state takes a hundred times longer."""

LEARNED_FRAMES, BETWEEN = (8, 12, 24), 6
"""Training frames of a sequence; frames between two first ones."""

Features = Mapping[str, NDArray[np.float32]]
"""By task, f_NF of its images."""
COLUMNS = ("accuracy", "false_unknown", "confused", "unknown", "auroc", "member_score", "member_ratio")


@dataclass(frozen=True)
class Maker:
    """Learns tasks as one institution would.

    public: features of public images by modality, for noisy routers. noise: the router's noise multiplier; 0
    without noise.
    """

    spec: RouterSpec
    router: Router
    public: Sequence[NDArray[np.float64]]
    noise: float = 0.0

    def state(self, f_NF: NDArray[np.float32], seed: int) -> Arrays:
        """The state of these images."""
        own_NF = torch.from_numpy(f_NF)
        if not self.noise:
            return self.router.fit(self.router.sufficient_statistics(own_NF, seed))
        return self.router.fit(
            self.noisy(
                own_NF,
                single_images(len(f_NF)),
                noise_multiplier=self.noise,
                draws=Draws(seed, ("bench",)),
                noise=NoiseSource.seeded(seed, "bench"),
            )
        )

    @cached_property
    def private(self) -> PrivateRouter:
        private = router_entry(self.spec.kind).private
        assert private is not None  # all candidates have a private variant
        return private

    @cached_property
    def noisy(self) -> NoisyStatistics:
        return self.private.prepare(self.router, PRIVACY, lambda: self.public)

    def threshold(self, f_NF: NDArray[np.float32], state: Arrays, seed: int) -> float:
        """The task's threshold: the router's constant, or one that is fitted to scores of its images."""
        spec = self.spec
        if spec.constant is not None:
            return spec.constant
        if not self.noise:
            return choose_threshold(learn_and_score(self.router, torch.from_numpy(f_NF), spec, seed)[1], spec)
        lowest = self.private.lowest_score(self.router, state)
        own_N, public_N = (
            -fits_of(self.router, torch.from_numpy(rows), state)
            for rows in (f_NF, np.concatenate(self.public).astype(np.float32))
        )
        noise = NoiseSource.seeded(seed, "bench scores")
        both = describe_scores(own_N, single_images(len(f_NF)), public_N, lowest, self.noise, noise)
        return choose_threshold(scores_like(both, lowest, DRAWN, seed), spec)


def router_noise(spec: RouterSpec, row: Row | None) -> float:
    """The noise multiplier at which the router costs its share of epsilon; 0 without noise."""
    if row is None:
        return 0.0
    epsilon, share = row
    return calibrate(lambda noise: description(PRIVACY, spec, noise, IMAGES), share * epsilon, DELTA)


def split(tasks: Sequence[str], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """(seen, unseen): a third of the tasks is unseen."""
    order = [str(task) for task in rng.permutation(sorted(tasks))]
    return sorted(order[len(order) // 3 :]), sorted(order[: len(order) // 3])


def draw(maker: Maker, kinds: Sequence[Features], number: int) -> dict[str, float]:
    """The figures (COLUMNS) of one draw. kinds: synthetic and real tasks, divided separately."""
    rng = numpy_generator(number, "frame-quality")
    parts = [split([*features], rng) for features in kinds]
    seen, unseen = ([task for part in parts for task in part[side]] for side in (0, 1))
    features = {task: f_NF for kind in kinds for task, f_NF in kind.items()}
    attacked = rng.permutation(seen)[:ATTACKED]
    states, thresholds, tests, attacks = [], [], {}, []
    for task in seen:
        f_NF = features[task][rng.permutation(len(features[task]))]
        seed = derive_seed(number, "router", task)
        states.append(maker.state(f_NF[:IMAGES], seed))
        thresholds.append(maker.threshold(f_NF[:IMAGES], states[-1], seed))
        tests[task] = f_NF[IMAGES:]
        if task in attacked:
            attacks.append(attack(maker, f_NF, states[-1], seed))
    tests |= {task: features[task] for task in unseen}
    scored = {
        task: np.stack([-fits_of(maker.router, torch.from_numpy(f_NF), state) for state in states], axis=1)
        for task, f_NF in tests.items()
    }
    quality = judge(Scores(seen, unseen, {}, scored), thresholds, ())
    told = dict(zip(("member_score", "member_ratio"), np.mean(attacks, axis=0), strict=True))
    return {column: float(told.get(column, getattr(quality, column, 0.0))) for column in COLUMNS}


def attack(maker: Maker, f_NF: NDArray[np.float32], state: Arrays, seed: int) -> tuple[float, float]:
    """AUC of membership by the score and by its likelihood ratio. f_NF: the IMAGES members first.

    The others are at most as many. The attacker's states are made from halves of these images.
    """
    pool_NF = torch.from_numpy(f_NF[: 2 * IMAGES])
    fit_N = fits_of(maker.router, pool_NF, state)
    inside_MN = shadow_parts(len(pool_NF), 2, SHADOWS, numpy_generator(seed, "shadows"))
    fit_MN = np.stack(
        [
            fits_of(maker.router, pool_NF, maker.state(f_NF[: len(pool_NF)][inside_N], seed + 1 + number))
            for number, inside_N in enumerate(inside_MN)
        ]
    )
    ratio_N = online(fit_N, fit_MN, inside_MN)
    return auc(fit_N[:IMAGES], fit_N[IMAGES:]), auc(ratio_N[:IMAGES], ratio_N[IMAGES:])


def lost_in_time(maker: Maker, f_NF: NDArray[np.float32], frames: int) -> float:
    """The mean share of the later frames that is sent to frozen SAM, over first frames. f_NF: in time."""
    lost = []
    for first in range(0, len(f_NF) - 2 * frames + 1, BETWEEN):
        known_NF, later_NF = f_NF[first : first + frames], f_NF[first + frames :]
        state = maker.state(known_NF, first)
        score_N = -fits_of(maker.router, torch.from_numpy(later_NF), state)
        lost.append(float((score_N > maker.threshold(known_NF, state, first)).mean()))
    return float(np.mean(lost))


def sequence_features(around: Surroundings, backbone: Backbone, folder: str, root: Path) -> AllKinds:
    """Features of all frames of a sequence, in the order of time."""
    dataset = open_dataset(DataSpec(path=folder), data_root=root, seed=0, institution="bench")
    place = {sample.id: number for number, sample in enumerate(dataset.samples)}
    found = folder_features(backbone, folder, len(place), root, around.home, around.say)
    order_N = [place[sample.id] for sample in in_time(dataset.samples)]
    return {kind: f_NF[order_N] for kind, f_NF in found.items()}


def real_tasks(root: Path) -> list[str]:
    """The folders of real images in --data-root: those with `images` and `masks` in them."""
    return sorted(path.parent.name for path in root.glob("*/images") if (path.parent / "masks").is_dir())


def run(around: Surroundings) -> Figures:
    """Means over DRAWS draws; the table has 95 % intervals over draws, which share tasks and images."""
    backbone = around.lite_medsam(encoder="fast")
    groups = all_features(around, backbone)
    synthetic, real = (len(group) for group in groups)
    title = f"{synthetic} synthetic and {real} real tasks, {IMAGES} images, {DRAWS} draws"
    table = table_of(title, ("router", "noise", *COLUMNS, "bytes"))
    figures: Figures = {}
    for plain, rows in CANDIDATES:
        spec = plain.completed(BACKBONE)
        kinds = [{task: of_task[spec.features] for task, of_task in group.items()} for group in groups]
        public = public_features_of(backbone, spec.features, around.home / "public")
        for row in rows:
            maker = Maker(spec, build_router(spec), public, router_noise(spec, row))
            draws = [draw(maker, kinds, number) for number in range(DRAWS)]
            size = sum(array.nbytes for array in maker.state(kinds[0][TASKS[0]][:IMAGES], 0).values())
            cells = [interval([found[column] for found in draws]) for column in COLUMNS]
            name = name_of(spec, row)
            table.add_row(spec.kind, name, *cells, str(size))
            around.say(f"{spec.kind}, {name}: {' '.join(cells)}")
            key = f"{spec.kind}_{name.replace(', ', '_').replace(' ', '_')}"
            figures |= {f"{c}_{key}": float(np.mean([found[c] for found in draws])) for c in COLUMNS}
            figures[f"bytes_{key}"] = float(size)
    around.show(table)
    return figures if around.data_root is None else figures | sequences(around, backbone, around.data_root)


def name_of(spec: RouterSpec, row: Row | None) -> str:
    """`epsilon 8, share 0.5`; of the default router also which threshold, if not the constant one."""
    name = "open" if row is None else "epsilon {:g}, share {:g}".format(*row)
    fitted = isinstance(spec, PublicFrameSpec) and spec.constant is None
    return f"{name}, fitted threshold" if fitted else name


def sequences(around: Surroundings, backbone: Backbone, root: Path) -> Figures:
    """`lost_in_time` of every sequence in the folder of real images, by training frames."""
    spec, figures = PublicFrameSpec().completed(BACKBONE), Figures()
    for folder in sorted({*SEQUENCES} & {*real_tasks(root)}):
        f_NF = sequence_features(around, backbone, folder, root)[spec.features]
        for frames in (some for some in LEARNED_FRAMES if 2 * some <= len(f_NF)):
            lost = lost_in_time(Maker(spec, build_router(spec), ()), f_NF, frames)
            around.say(f"{folder}, learned from {frames} frames: {lost:.4f} of the later ones are lost")
            figures[f"lost_in_time_{folder}_{frames}"] = lost
    return figures


def all_features(around: Surroundings, backbone: Backbone) -> tuple[dict[str, AllKinds], dict[str, AllKinds]]:
    """By task, the features of all synthetic and of all real tasks."""
    home, say, root = around.home, around.say, around.data_root
    made = {task: phantom_features(backbone, task, IMAGES + TEST_IMAGES, home, say) for task in TASKS}
    if root is None:
        return made, {}
    real = {task: folder_features(backbone, task, REAL_IMAGES, root, home, say) for task in real_tasks(root)}
    return made, real


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval (normal) over draws."""
    spread = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ± {1.96 * spread:.3f}"
