"""The quality of routers by epsilon: the private Gaussian and the private VAE on the twin tasks.

Only routers are released here, so each router has the whole budget. Public images are phantoms of the other
modalities, which belong to no institution and to no learned task.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from casam_bench.bench import Figures, Surroundings
from casam_bench.quality.phantom_features import phantom_features
from casam_bench.quality.router_quality import (
    MANY,
    SPLITS,
    TASKS,
    TEST_IMAGES,
    TWINS,
    Scores,
    cells_of,
    judge,
    means_of,
    quality_table,
    score_tests,
    thresholds_of,
)
from casam_core.config.named_parts import RouterSpec
from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import calibrate
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_scores import describe_scores, scores_like
from casam_core.privacy.units import single_images
from casam_core.routing.routers import ROUTERS, Arrays, GaussianSpec, VaeSpec, build_router
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.dp.plan import description

IMAGES, PUBLIC_IMAGES = 64, 8
EPSILONS, DELTA = (8.0, 3.0, 1.0), 1e-3
PRIVACY = PrivacySpec(steps=50, sampling_rate=0.25)
CANDIDATES = {
    "gaussian, moments": GaussianSpec(features="moments"),
    "vae, attention": VaeSpec(features="attention"),
}
DRAWN = 512

Features = Mapping[str, NDArray[np.float32]]


def described(
    spec: RouterSpec, f_NF: NDArray[np.float32], public: Features, multiplier: float, seed: int
) -> tuple[Arrays, NDArray[np.float64]]:
    """(noisy state, stand-ins for the scores of held-out images)."""
    router, noise = build_router(spec), NoiseSource.seeded(seed, "bench")
    private = ROUTERS[spec.kind].private
    assert private is not None  # all candidates have a private variant
    units, draws = single_images(len(f_NF)), Draws(seed, ("bench",))
    own_NF, public_NF = torch.from_numpy(f_NF), torch.from_numpy(np.concatenate([*public.values()]))
    noisy = private.prepare(router, PRIVACY, lambda: [f.astype(np.float64) for f in public.values()])
    state = router.fit(noisy(own_NF, units, noise_multiplier=multiplier, draws=draws, noise=noise))
    lowest = private.lowest_score(router, state)
    scores_N, public_N = (
        np.array([router.score(f_F, state) for f_F in rows]) for rows in (own_NF, public_NF)
    )
    both = describe_scores(scores_N, units, public_N, lowest, multiplier, noise)
    return state, scores_like(both, lowest, DRAWN, seed)


def score(spec: RouterSpec, features: Features, public: Features, multiplier: float, split: int) -> Scores:
    """One router with noise on one split: a third of the tasks (one of four) stays unseen."""
    order = [str(task) for task in numpy_generator(split, "private-router").permutation(sorted(features))]
    seen, unseen = sorted(order[len(order) // 3 :]), sorted(order[: len(order) // 3])
    made = {
        task: described(spec, features[task][:IMAGES], public, multiplier, derive_seed(split, "router", task))
        for task in seen
    }
    tests = score_tests(build_router(spec), [made[task][0] for task in seen], features)
    return Scores(seen, unseen, {task: made[task][1] for task in seen}, tests)


def run(around: Surroundings) -> Figures:
    """accuracy_KIND_E, unknown_KIND_E, auroc_KIND_E: means over splits at epsilon E."""
    backbone = around.lite_medsam()
    both = {
        task: phantom_features(
            backbone, task, IMAGES + TEST_IMAGES if task in MANY else PUBLIC_IMAGES, around.home, around.say
        )
        for task in TASKS
    }
    table = quality_table(
        f"{IMAGES} images a task, delta {DELTA:g}, mean over {SPLITS} splits", "epsilon", "noise"
    )
    figures: Figures = {}
    for name, spec in CANDIDATES.items():
        features = {task: both[task][spec.features] for task in MANY}
        public = {task: both[task][spec.features][:PUBLIC_IMAGES] for task in TASKS if task not in MANY}
        for epsilon in EPSILONS:
            multiplier = calibrate(partial(description, PRIVACY, spec), epsilon, DELTA)
            scores = [score(spec, features, public, multiplier, split) for split in range(SPLITS)]
            means = means_of([judge(found, thresholds_of(found, spec), TWINS) for found in scores])
            cells = cells_of(means)
            table.add_row(name, f"{epsilon:g}", f"{multiplier:.2f}", *cells)
            around.say(f"private-router, {name}, epsilon {epsilon:g}: {' '.join(cells)}")
            figures |= {
                f"{column}_{spec.kind}_{epsilon:g}": value
                for column, value in means.items()
                if value is not None
            }
    around.show(table)
    return figures
