"""The attack benchmark's routers: Gaussian ones, open and with noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from casam_bench.bench import Figures, Surroundings
from casam_bench.membership.fit import fits_of
from casam_bench.membership.inversion import read_out
from casam_bench.membership.likelihood_ratio import online, shadow_parts
from casam_bench.privacy.attack_rows import (
    EPSILONS,
    PARTS,
    Claims,
    Setting,
    Size,
    attack_table,
    delta_of,
    key,
    report,
    verdict,
)
from casam_bench.privacy.synthetic_site import SEED, features_of
from casam_core.privacy.accounting import Mechanism, calibrate
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import single_images
from casam_core.routing.routers import Arrays, GaussianSpec, build_router
from casam_core.routing.routers.private_gaussian import PublicFrame, describe_privately, public_frame
from casam_core.seeding import numpy_generator

ROUTER = GaussianSpec()
PUBLIC_TASKS, PUBLIC_IMAGES = 6, 16
FIRST_PUBLIC = 10_000
"""Numbers of the synthetic sites whose images are public."""


def measure(around: Surroundings, size: Size, claims: Claims) -> Figures:
    """`size.sites` sites of `size.small` members and twice as many others each; their scores together."""
    frame = public_frame(
        [features_of(FIRST_PUBLIC + task, PUBLIC_IMAGES).double().numpy() for task in range(PUBLIC_TASKS)]
    )
    delta, name = delta_of(size.small), f"{size.sites} sites of {size.small}"
    table = attack_table(
        f"Gaussian routers, {name} and twice as many others each, {size.router_shadows} shadows a site, "
        f"delta {delta:g}"
    )
    settings = [Setting("open")] + [
        Setting(
            f"epsilon {epsilon:g}",
            epsilon,
            calibrate(lambda scale: [Mechanism(scale)], epsilon, delta),
        )
        for epsilon in EPSILONS
    ]
    figures: Figures = {}
    for setting in settings:
        around.say(f"router, {name}, {setting.name}")
        sites = [attack_site(setting, site, size, frame) for site in range(size.sites)]
        found = {}
        for attack in sites[0]:
            members = np.concatenate([scores[attack][: size.small] for scores in sites])
            others = np.concatenate([scores[attack][size.small :] for scores in sites])
            found[attack] = verdict(np.concatenate([members, others]), len(members), delta)
        figures |= report(table, f"router_{key(name)}", setting, found, claims)
    around.show(table)
    return figures


def attack_site(
    setting: Setting, site: int, size: Size, frame: PublicFrame
) -> Mapping[str, NDArray[np.float64]]:
    """By attack, the scores of one site's members, then of its others."""
    router, f_NF = build_router(ROUTER), features_of(site, PARTS * size.small)

    def state(images: NDArray[np.int64], who: str) -> Arrays:
        f_IF = f_NF[torch.from_numpy(images)]
        if setting.epsilon is None:
            return router.fit(router.sufficient_statistics(f_IF, 0))
        noise = NoiseSource.seeded(SEED, "router", setting.name, site, who)
        noisy = describe_privately(
            f_IF.double().numpy(), single_images(len(images)), frame, setting.noise, noise
        )
        return router.fit(noisy)

    target = state(np.arange(size.small), "target")
    fit_N = fits_of(router, f_NF, target)
    rng = numpy_generator(SEED, "router shadows", site)
    inside_MN = shadow_parts(len(f_NF), PARTS, size.router_shadows, rng)
    fit_MN = np.stack(
        [
            fits_of(router, f_NF, state(np.flatnonzero(inside_N), f"shadow {number}"))
            for number, inside_N in enumerate(inside_MN)
        ]
    )
    return {
        "score": fit_N,
        "likelihood ratio": online(fit_N, fit_MN, inside_MN),
        "read-out": read_out(ROUTER.kind, router, f_NF, target),
    }
