"""Shadow models: an institution's layer and router, trained on other images of the same institution.

The same code trains them, with the same settings and the same noise as for the released ones, on known parts
of the institution's images. They are never released. They use no early stopping and no fallback to the
identity, because both use validation images, which may be among a shadow's training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.methods import first_layer
from casam_core.model.backbones import Backbone
from casam_core.model.forms import AlignmentLayer
from casam_core.model.layer_library import LIBRARIES, library_named
from casam_core.model.training import OpenSteps, Steps
from casam_core.privacy.layer_steps import PrivateSteps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units, units_of
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import Arrays, Router, build_router
from casam_core.routing.routers.base import NoisyStatistics
from casam_core.seeding import Draws, derive_seed, numpy_generator
from client.data.dataset import Sample
from client.data.task_data import StoredExamples, TaskData
from client.dp.noisy_router import private_router, public_features_of
from client.dp.plan import TaskPlan
from client.institution import train_round


@dataclass(frozen=True)
class Shadows:
    """Makes shadow models of one task at one institution.

    samples: all images of the attack; models are trained on some of them, given by index. policy: the
    institution's policy. stage: the stage in which the task was learned.
    """

    institution: str
    task: str
    stage: int
    scenario: Scenario
    policy: Policy
    backbone: Backbone
    data: TaskData
    samples: Sequence[Sample]

    def layer(
        self, images: Sequence[int], number: int, progress: Callable[[int, int], None]
    ) -> AlignmentLayer:
        """Shadow `number`: a layer trained only on these images, over the scenario's rounds."""
        scenario = self.scenario
        # It starts from the target's first layer, which every holder and so an attacker knows.
        layer = first_layer(
            scenario, self.task, self.backbone.geometry.channels, self.backbone, LIBRARIES.here
        )
        items = [(self.data, self.samples[i]) for i in images]
        examples = StoredExamples(items, self.backbone, layer.sees_pixels)
        for round_ in range(1, scenario.training.rounds + 1):
            rng = numpy_generator(scenario.seed, self.institution, "shadow", number, round_, self.task)
            steps: Steps = OpenSteps()
            if self.policy.adapter.noise == "dp":
                noise = self.noise("layer", number, round_)
                draws = Draws(scenario.seed, (self.institution, "shadow", number, round_, self.task))
                digest, units = library_named(scenario), self.units(images)
                library = LIBRARIES.get(digest, LIBRARIES.here) if digest else None
                plan = TaskPlan(scenario, self.policy, units.count)
                steps = PrivateSteps(units, scenario.privacy, plan.layer_noise, noise, draws, library)
            train_round(scenario, self.task, layer, self.backbone, examples, steps, rng, progress)
        return layer

    def router(self, f_NF: Tensor, images: Sequence[int], number: int) -> Arrays:
        """Shadow `number`: a router state from only these images. f_NF: features of all samples."""
        router = self.plain_router
        if self.policy.router.noise != "dp":
            seed = derive_seed(self.scenario.seed, self.stage, "router", self.task)
            return router.fit(router.sufficient_statistics(f_NF[list(images)], seed))
        statistics = self.noisy_statistics(
            f_NF[list(images)],
            self.units(images),
            noise_multiplier=TaskPlan(self.scenario, self.policy, self.units(images).count).router_noise,
            draws=Draws(self.scenario.seed, (self.institution, "shadow", "drawn", number, self.task)),
            noise=self.noise("router", number, 0),
        )
        return router.fit(statistics)

    @cached_property
    def plain_router(self) -> Router:
        """The scenario's router."""
        return build_router(self.scenario.router, FRAMES.here)

    @cached_property
    def noisy_statistics(self) -> NoisyStatistics:
        """The maker of private router statistics; its public part is computed once for all shadows."""
        spec, folder = self.scenario.router, self.data.store.folder
        return private_router(self.scenario).prepare(
            self.plain_router,
            self.scenario.privacy,
            lambda: public_features_of(self.backbone, spec.features, folder),
        )

    def units(self, images: Sequence[int]) -> Units:
        """Privacy units among these images, by position in `images`."""
        chosen, budget = [self.samples[i] for i in images], self.policy.budget
        ids, groups = [sample.id for sample in chosen], [sample.group for sample in chosen]
        return units_of(ids, groups, budget.unit, budget.contribution)

    def noise(self, what: str, number: int, round_: int) -> NoiseSource:
        """Seeded noise: a shadow is never released, so its noise can be repeatable."""
        scope = (self.institution, "shadow", what, number, round_, self.task)
        return NoiseSource.seeded(self.scenario.seed, *scope)


def indices(inside_N: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[int]:
    """Indices of the True values of a mask."""
    return [int(i) for i in np.flatnonzero(inside_N)]
