"""The attack benchmark's canaries: a lower bound of epsilon beside every claim, and broken mechanisms.

Worst-case canaries (casam_bench.membership.canaries) go through the product's private mechanisms. A
mechanism that is broken on purpose keeps its claim, and the audit must refute it. Last, what an outsider
gets: canaries that are images, and only the final layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.membership.audit_lines import COLUMNS, Line, facts_of
from casam_bench.membership.canaries import (
    Broken,
    Release,
    audit_release,
    layer_release,
    router_release,
    scores_release,
    sum_release,
)
from casam_bench.membership.fit import losses_of
from casam_bench.membership.one_run import Coins, Scores
from casam_bench.privacy.attack_layers import PRIVATE, train
from casam_bench.privacy.attack_rows import EPSILONS, Setting, Size, key
from casam_bench.privacy.synthetic_site import SEED, images_of, sketch_backbone
from casam_core.config.scenario import PrivacySpec
from casam_core.errors import RunError
from casam_core.privacy.accounting import Mechanism, calibrate, round_mechanism
from casam_core.privacy.noise import NoiseSource

BROKEN = {"noise x 0.5": Broken(noise=0.5), "clip x 2": Broken(clip=2.0)}
SAMPLED = PrivacySpec(steps=25, sampling_rate=0.2)
FULL = PrivacySpec(steps=5, sampling_rate=1.0)
"""Every unit in every step: nothing hides a canary but the noise."""

Costs = Callable[[float], Mechanism]
"""Noise multiplier -> the cost of a release."""
Makes = Callable[[str, Mechanism, Broken | None], Release]


def measure(around: Surroundings, size: Size) -> Figures:
    """Figures `audit_RELEASE_EPSILON_at_least`, `..._canaries`, `..._guesses`, `..._correct`.

    Raises RunError if an audit refutes a claim, or does not refute that of a broken mechanism.
    """
    many, few = size.canaries, size.lone_canaries
    releases: list[tuple[str, int, Costs, Makes]] = [
        (f"layer, {spent(privacy)}", many, partial(round_mechanism, privacy, units=many), layer_release)
        for privacy in (SAMPLED, FULL)
    ] + [
        ("sum behind router, threshold, metrics", many, Mechanism, sum_release),
        ("Gaussian router, one canary a site", few, Mechanism, router_release),
        ("threshold, one canary a site", few, Mechanism, scores_release),
    ]
    table = table_of("Privacy audit by worst-case canaries, bounds at 95 %", COLUMNS)
    figures: Figures = {}
    honest: list[Line] = []
    for epsilon in EPSILONS:
        for name, canaries, cost, make in releases:
            honest.append(line_of(around, name, canaries, epsilon, make, cost))
            figures |= figures_of(honest[-1], epsilon)
        honest.append(outside(around, size, epsilon))
        figures |= figures_of(honest[-1], epsilon)
    caught: list[Line] = []
    for epsilon in size.broken:
        for name, canaries, cost, make in (releases[0], releases[2]):
            for fault, broken in BROKEN.items():
                line = line_of(around, f"{name}, {fault}", 2 * canaries, epsilon, make, cost, broken)
                caught.append(line)
                figures |= figures_of(caught[-1], epsilon)
    for line in (*honest, *caught):
        table.add_row(*facts_of(line))
    around.show(table)
    check(honest, caught)
    return figures


def line_of(
    around: Surroundings,
    name: str,
    canaries: int,
    epsilon: float,
    make: Makes,
    cost: Costs,
    broken: Broken | None = None,
) -> Line:
    """One audited release that claims this epsilon."""
    around.say(f"canaries, {name}, epsilon {epsilon:g}")
    delta = 0.5 / canaries
    noise = calibrate(lambda scale: [cost(scale)], epsilon, delta)
    return audit_release(make(name, cost(noise), broken), canaries, delta, SEED)


def outside(around: Surroundings, size: Size, epsilon: float) -> Line:
    """Images as canaries of one site, and only the final layer: what an outsider gets."""
    around.say(f"canaries, images, epsilon {epsilon:g}")
    canaries = size.members
    delta = 0.5 / canaries
    noise = calibrate(lambda scale: [round_mechanism(PRIVATE, scale, canaries)], epsilon, delta)
    backbone, known = sketch_backbone(around.threads), images_of(0, canaries)

    def scores(coins_N: Coins, source: NoiseSource) -> Scores:
        setting = Setting(f"canaries {epsilon:g}", epsilon, noise)
        inside = [known[i] for i in np.flatnonzero(coins_N)]
        layer = train(setting, backbone, inside, "canaries")
        return -losses_of(layer, known, range(canaries), backbone, lambda done, total: None)

    release = Release("images, final layer only", (round_mechanism(PRIVATE, noise, canaries),), scores)
    return audit_release(release, canaries, delta, SEED)


def check(honest: list[Line], caught: list[Line]) -> None:
    """Raise RunError if a claim was refuted, or if a broken mechanism was not."""
    if refuted := [words(line) for line in honest if line.refuted]:
        raise RunError(f"an audit refutes an epsilon: {'; '.join(refuted)}")
    if missed := [words(line) for line in caught if not line.refuted]:
        raise RunError(f"an audit does not find a broken mechanism: {'; '.join(missed)}")


def words(line: Line) -> str:
    """The claim and its bound, for messages."""
    return f"{line.release}: {line.at_least:.2f} or more, claimed {line.claim:.2f}"


def spent(privacy: PrivacySpec) -> str:
    """The steps of a round."""
    return f"{privacy.steps} steps at rate {privacy.rate(0):g}"


def figures_of(line: Line, epsilon: float) -> Figures:
    """The figures of one line."""
    name = f"audit_{key(line.release)}_{epsilon:g}"
    return {
        f"{name}_at_least": line.at_least,
        f"{name}_ratio": line.ratio,
        f"{name}_canaries": line.canaries,
        f"{name}_guesses": line.guesses,
        f"{name}_correct": line.correct,
    }
