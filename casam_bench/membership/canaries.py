"""Worst-case canaries through the product's own private mechanisms, for the one-run audit.

A canary is the unit that a mechanism protects worst: it fills its whole clip, in a direction of its own. A
canary that is out is left out of the units; the public counts stay, so they reveal nothing. The attacker
knows everything else: the other units, the claim, and every noisy sum as it was released. The score of a
canary is its log-likelihood ratio (in against out) under the claimed noise, or a number that rises with it.

`Broken` breaks a mechanism on purpose. The claim stays, so an audit must find a larger epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from casam_bench.membership.audit_lines import Line
from casam_bench.membership.one_run import Coins, Plan, Scores, correct_of, most_refuted, plan_from
from casam_bench.membership.privacy_curve import curve_of, exact_epsilon
from casam_core.config.scenario import PrivacySpec
from casam_core.privacy.accounting import Mechanism, epsilon_of
from casam_core.privacy.dp_training import PrivateRound, take_private_steps
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_scores import describe_scores
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units, single_images
from casam_core.routing.routers.base import Arrays
from casam_core.routing.routers.private_gaussian import PublicStatistics, describe_privately
from casam_core.seeding import Draws, numpy_generator

TOGETHER = 1000
"""Canaries of a layer's run; more canaries take several runs, and the bound holds for them together."""
FAR = 100.0
"""The length of a canary before it is clipped, in clips."""
REHEARSED = 1_000_000
"""Canaries of all rehearsals together, but at most 50 rehearsals."""


@dataclass(frozen=True)
class Broken:
    """Factors of a mechanism's noise and of its clip, without a change of its claim."""

    noise: float = 1.0
    clip: float = 1.0

    def multiplier(self, mechanism: Mechanism) -> float:
        """The noise that is really added, divided by the clip that is really used."""
        return mechanism.noise_multiplier * self.noise / self.clip


@dataclass(frozen=True)
class Release:
    """A private release under audit, or several about the same units.

    mechanisms: the claimed cost. scores: (coins, noise) -> the score of every canary, from what was released.
    """

    name: str
    mechanisms: tuple[Mechanism, ...]
    scores: Callable[[Coins, NoiseSource], Scores]


def audit_release(release: Release, canaries: int, delta: float, seed: int) -> Line:
    """Flip a coin for every canary, make the release, and guess."""
    coins_N = flipped(canaries, seed, "audit", release.name)
    scores_N = release.scores(coins_N, NoiseSource.seeded(seed, "audit", release.name))
    plan = rehearsed(release.mechanisms, canaries, seed)
    correct = correct_of(scores_N, coins_N, plan)
    claim = epsilon_of(release.mechanisms, delta)
    proved = at_least(release.mechanisms, canaries, plan.guesses, correct, delta)
    return Line(release.name, claim, delta, proved, canaries, plan.guesses, correct)


def at_least(
    mechanisms: Sequence[Mechanism], canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """The lower bound of epsilon at `delta`: that of the most noise on these mechanisms that is refuted."""
    loss = most_refuted(canaries, guesses, correct, lambda loss: curve_of(with_noise(mechanisms, loss)))
    return exact_epsilon(with_noise(mechanisms, loss), delta) if loss else 0.0


def with_noise(mechanisms: Sequence[Mechanism], loss: float) -> tuple[Mechanism, ...]:
    """The mechanisms with their noise divided by `loss`."""
    return tuple(replace(cost, noise_multiplier=cost.noise_multiplier / loss) for cost in mechanisms)


def flipped(canaries: int, seed: int, *scope: int | str) -> Coins:
    """One fair coin per canary."""
    return numpy_generator(seed, "coins", *scope).random(canaries) < 0.5


def rehearsed(mechanisms: Sequence[Mechanism], canaries: int, seed: int) -> Plan:
    """The plan for these mechanisms, from simulations of their claim alone."""

    def rehearse(number: int) -> tuple[Scores, Coins]:
        coins_N = flipped(canaries, seed, "rehearsal", number)
        rng = numpy_generator(seed, "rehearsal", number)
        scores_N = np.zeros(canaries)
        for mechanism in (cost for cost in mechanisms for _ in range(cost.steps)):
            taken_N = coins_N & (rng.random(canaries) < mechanism.sample_rate)
            seen_N = taken_N + mechanism.noise_multiplier * rng.standard_normal(canaries)
            scores_N += likelihood_ratio(seen_N, mechanism)
        return scores_N, coins_N

    rehearsals = map(rehearse, range(min(50, max(4, REHEARSED // canaries))))
    return plan_from(rehearsals, lambda loss: curve_of(with_noise(mechanisms, loss)))


def likelihood_ratio(seen_N: NDArray[np.float64], mechanism: Mechanism) -> Scores:
    """ln of the density of one step's values if the canary is in, over that if it is out.

    seen_N: the noisy sum in the direction of each canary; the canary itself has length 1.
    """
    gain_N = (2 * seen_N - 1) / (2 * mechanism.noise_multiplier**2)
    return np.log1p(mechanism.sample_rate * np.expm1(gain_N)) if mechanism.sample_rate < 1 else gain_N


def layer_release(name: str, mechanism: Mechanism, broken: Broken | None = None) -> Release:
    """Private training of a layer (and of a VAE router, whose steps are the same).

    The model is a vector. The gradient of each canary has a coordinate of its own. The attacker sees the
    noisy sum of every step, which is more than the final weights.

    mechanism: all steps of all rounds.
    """
    broken = broken or Broken()
    privacy = PrivacySpec(steps=mechanism.steps, sampling_rate=mechanism.sample_rate, clip=broken.clip)

    def of_one_run(coins_N: Coins, noise: NoiseSource) -> Scores:
        count = len(coins_N)
        model = Vector(count)
        draws = Draws(0, ("audit",))
        steps = PrivateRound(taking_part(coins_N), privacy, broken.multiplier(mechanism), noise, draws)

        def gradient(step: int, unit: Unit) -> None:
            model.values.grad = FAR * one_hot(unit.images[0], count)

        scores_N = np.zeros(count)

        def seen(gradient_D: NDArray[np.float64]) -> None:
            scores_N[:] += likelihood_ratio(gradient_D * steps.expected, mechanism)

        for _ in take_private_steps(model, steps, gradient, seen):
            pass
        return scores_N

    return Release(name, (mechanism,), in_parts(of_one_run))


def sum_release(name: str, mechanism: Mechanism, broken: Broken | None = None) -> Release:
    """Private sums over all units, as behind a Gaussian router, its scores, metrics and the bank's canary."""
    broken = broken or Broken()
    total = PrivateSum(broken.clip, broken.multiplier(mechanism))

    def of_one_run(coins_N: Coins, noise: NoiseSource) -> Scores:
        count, units = len(coins_N), taking_part(coins_N)
        scores_N = np.zeros(count)
        for _ in range(mechanism.steps):
            rows = (FAR * one_hot(unit.images[0], count).double().numpy() for unit in units)
            scores_N += likelihood_ratio(total.release(rows, count, noise), mechanism)
        return scores_N

    return Release(name, (mechanism,), in_parts(of_one_run))


def together(name: str, releases: Sequence[Release]) -> Release:
    """Several releases about the same units: their log-likelihood ratios add up."""

    def scores(coins_N: Coins, noise: NoiseSource) -> Scores:
        scores_N = np.zeros(len(coins_N))
        for release in releases:
            scores_N += release.scores(coins_N, noise)
        return scores_N

    mechanisms = tuple(mechanism for release in releases for mechanism in release.mechanisms)
    return Release(name, mechanisms, scores)


def taking_part(coins_N: Coins) -> Units:
    """Units of one image each: those whose coin is True, with the public counts of all."""
    units = single_images(len(coins_N))
    return replace(units, members=tuple(unit for unit in units if coins_N[unit.images[0]]))


def one_hot(place: int, count: int) -> torch.Tensor:
    """A vector of `count` numbers: one at this place, zero elsewhere."""
    values = torch.zeros(count)
    values[place] = 1.0
    return values


def in_parts(of_one_run: Callable[[Coins, NoiseSource], Scores]) -> Callable[[Coins, NoiseSource], Scores]:
    """Runs of up to TOGETHER canaries, one after another."""

    def scores(coins_N: Coins, noise: NoiseSource) -> Scores:
        return np.concatenate([of_one_run(coins_N[part], noise) for part in parts(len(coins_N))])

    return scores


class Vector(nn.Module):
    """A model of `count` numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count))


def parts(canaries: int) -> Iterator[slice]:
    """Runs of up to TOGETHER canaries."""
    for start in range(0, canaries, TOGETHER):
        yield slice(start, min(start + TOGETHER, canaries))


OTHERS = 40
"""Known units of a site with one canary: so many that a released value is seldom at the edge of its range."""


def router_release(name: str, mechanism: Mechanism, broken: Broken | None = None) -> Release:
    """The private Gaussian router of many sites, each with one canary.

    The canary fills all three parts of its row (casam_core.routing.routers.private_gaussian): the direction,
    its square, and the part outside the directions. Two of them are the same for all units, so two canaries
    of one site would hide each other.
    """
    broken = broken or Broken()
    frame = PublicStatistics(
        mean_F=np.zeros(3),
        scale_F=np.ones(3),
        directions_FK=np.eye(3)[:, :2],
        inside_KK=1e-3 * np.eye(2),
        outside_FF=np.diag([0.0, 0.0, 1e-3]),
        clip=broken.clip,
        reach=1.0,
    )
    noise_multiplier = broken.multiplier(mechanism)
    canary_F = FAR * np.array([1.0, 0.0, 1.0])
    # Known units on both sides of the second direction, and half way outside the directions.
    f_NF = np.vstack([np.tile([[0.0, 1.0, 0.7], [0.0, -1.0, 0.7]], (OTHERS // 2, 1)), canary_F])

    def of_one_site(units: Units, noise: NoiseSource) -> float:
        released = describe_privately(f_NF, units, frame, noise_multiplier, noise)
        uncertainty = 3 * (noise_multiplier * frame.clip / units.count) ** 2
        return float(sums_of(released, frame, units, uncertainty) @ np.array([1.0, 0.0, 1.0, 1.0]))

    return Release(name, (mechanism,), one_each(of_one_site))


def sums_of(
    released: Arrays, frame: PublicStatistics, units: Units, uncertainty: float
) -> NDArray[np.float64]:
    """The noisy sum behind a released state: what describe_privately computes from it, in reverse.

    uncertainty: the variance of the noise of a mean.
    """
    images = float(released["count"][0])
    mean_F = np.asarray(released["sum_F"], np.float64) / images
    covariance_FF = np.asarray(released["outer_FF"], np.float64) / images - np.outer(mean_F, mean_F)
    mean_K = mean_F @ frame.directions_FK
    trace = float(np.trace(frame.directions_FK.T @ covariance_FF @ frame.directions_FK))
    inside = trace + float(mean_K @ mean_K) - 2 * len(mean_K) * uncertainty
    outside = float(np.trace(covariance_FF)) - trace
    return units.count * np.array([*mean_K, inside / frame.clip, outside * frame.clip / frame.reach**2])


def scores_release(name: str, mechanism: Mechanism, broken: Broken | None = None) -> Release:
    """The private scores behind the threshold of many sites, each with one canary, at the end of the scale.

    The clip of this release is its scale, which nothing sets: a broken clip is the same as less noise.
    """
    broken = broken or Broken()
    noise_multiplier = broken.multiplier(mechanism)
    top = np.sinh(1.0)
    scores_N = np.append(np.sinh(np.tile([0.15, 0.85], OTHERS // 2)), FAR * top)

    def of_one_site(units: Units, noise: NoiseSource) -> float:
        mean, spread = describe_scores(scores_N, units, np.full(3, top), 0.0, noise_multiplier, noise)
        return float(mean + spread**2 + mean**2)

    return Release(name, (mechanism,), one_each(of_one_site))


def one_each(of_one_site: Callable[[Units, NoiseSource], float]) -> Callable[[Coins, NoiseSource], Scores]:
    """Sites with OTHERS known units, and one canary that is in or out; the counts are the same."""
    without, within = (taking_part(np.append(np.ones(OTHERS, bool), inside)) for inside in (False, True))

    def scores(coins_N: Coins, noise: NoiseSource) -> Scores:
        return np.array([of_one_site(within if inside else without, noise) for inside in coins_N])

    return scores
