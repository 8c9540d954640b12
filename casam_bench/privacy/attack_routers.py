"""The attack benchmark's routers: the default one and Gaussian ones, open and with noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
from casam_bench.quality.frame_quality import Maker
from casam_core.privacy.accounting import Mechanism, calibrate
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import Arrays, GaussianSpec, PublicFrameSpec, build_router
from casam_core.seeding import derive_seed, numpy_generator
from casam_use.frame_fit import make_frame

KINDS = ("public_frame", "gaussian")
PUBLIC_TASKS, PUBLIC_IMAGES = 6, 16
FIRST_PUBLIC = 10_000
"""Numbers of the synthetic sites whose images are public."""


def measure(around: Surroundings, size: Size, claims: Claims) -> Figures:
    """`size.sites` sites of `size.small` members and twice as many others each; their scores together."""
    delta, name = delta_of(size.small), f"{size.sites} sites of {size.small}"
    settings = [Setting("open")] + [
        Setting(f"epsilon {epsilon:g}", epsilon, calibrate(lambda scale: [Mechanism(scale)], epsilon, delta))
        for epsilon in EPSILONS
    ]
    figures: Figures = {}
    for kind in KINDS:
        table = attack_table(
            f"{kind}, {name} and twice as many others each, {size.router_shadows} shadows a site, "
            f"delta {delta:g}"
        )
        for setting in settings:
            around.say(f"router {kind}, {name}, {setting.name}")
            maker = maker_of(kind, setting, around.home / "frames")
            sites = [attack_site(maker, kind, site, size) for site in range(size.sites)]
            found = {}
            for attack in sites[0]:
                members = np.concatenate([scores[attack][: size.small] for scores in sites])
                others = np.concatenate([scores[attack][size.small :] for scores in sites])
                found[attack] = verdict(np.concatenate([members, others]), len(members), delta)
            figures |= report(table, f"{kind}_{key(name)}", setting, found, claims)
        around.show(table)
    return figures


def maker_of(kind: str, setting: Setting, frames: Path) -> Maker:
    """The learner of a row; the frame is made from synthetic sites whose images are public."""
    public = public_sites()
    if kind == "gaussian":
        return Maker(GaussianSpec(), build_router(GaussianSpec()), public, setting.noise)
    made = make_frame({f"site {number}": f_NF for number, f_NF in enumerate(public)}, {})
    spec = PublicFrameSpec(frame=FRAMES.keep(made.to_bytes(), frames))
    return Maker(spec, build_router(spec, frames), public, setting.noise)


def public_sites() -> Sequence[NDArray[np.float64]]:
    """f_NF of every public site."""
    return [features_of(FIRST_PUBLIC + task, PUBLIC_IMAGES).double().numpy() for task in range(PUBLIC_TASKS)]


def attack_site(maker: Maker, kind: str, site: int, size: Size) -> Mapping[str, NDArray[np.float64]]:
    """By attack, the scores of one site's members, then of its others."""
    router, f_NF = maker.router, features_of(site, PARTS * size.small)

    def state(images: NDArray[np.int64], who: str) -> Arrays:
        return maker.state(f_NF[torch.from_numpy(images)].numpy(), derive_seed(SEED, "router", site, who))

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
    found = {"score": fit_N, "likelihood ratio": online(fit_N, fit_MN, inside_MN)}
    # Every image has the same read-out from a mean in a public frame: it is no attack.
    return found if kind == "public_frame" else found | {"read-out": read_out(kind, router, f_NF, target)}
