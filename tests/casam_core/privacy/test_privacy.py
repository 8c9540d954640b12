"""Mechanisms and what they cost: against hand computations, other accountants and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opacus.accountants import PRVAccountant

from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import PrivacySpec, TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms import FORMS, build_layer, form_spec, weights_of
from casam_core.model.training import Batch, Learner, train_layer
from casam_core.privacy.accounting import (
    ORDERS,
    Mechanism,
    affordable,
    calibrate,
    curve_replaced,
    epsilon_of,
    round_mechanism,
)
from casam_core.privacy.layer_steps import PrivateSteps, add_gradients
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.units import Unit, Units, single_images, units_of
from casam_core.routing.routers import GaussianSpec, build_router
from casam_core.routing.routers.private_gaussian import bounded_row, describe_privately, public_statistics
from casam_core.seeding import Draws
from tests.banks import tiny_backbone

RELEASES = [  # the last one without sampling
    [Mechanism(1.0, 0.2, 25)],
    [Mechanism(3.25, 0.2, 25), Mechanism(13.0)],
    [Mechanism(0.8, 0.01, 1000)],
    [Mechanism(5.0)] * 4,
]


@pytest.fixture
def tiny() -> Backbone:
    return tiny_backbone()


# --- Accounting --------------------------------------------------------------------------------------


def events(mechanisms: Sequence[Mechanism]) -> dp_accounting.DpEvent:
    """The same in dp-accounting's words."""
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(
                    m.sample_rate, dp_accounting.GaussianDpEvent(m.noise_multiplier)
                ),
                m.steps,
            )
            for m in mechanisms
        ]
    )


@pytest.mark.parametrize("mechanisms", RELEASES[:-1])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_rdp_agrees_with_dp_accountings_rdp(mechanisms: list[Mechanism], delta: float) -> None:
    other = RdpAccountant(list(ORDERS)).compose(events(mechanisms)).get_epsilon(delta)
    assert epsilon_of(mechanisms, delta) == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("mechanisms", RELEASES)
def test_the_numerical_accountants_agree_and_stay_below_rdp(mechanisms: list[Mechanism]) -> None:
    delta = 1e-3
    prv = PRVAccountant()
    prv.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in mechanisms]
    found = prv.get_epsilon(delta=delta, eps_error=0.001)
    pld = PLDAccountant().compose(events(mechanisms)).get_epsilon(delta)
    assert found == pytest.approx(pld, rel=0.01)
    assert pld <= epsilon_of(mechanisms, delta) * 1.001


def test_nothing_released_costs_nothing_and_nothing_less() -> None:
    assert epsilon_of([], 1e-3) == 0
    assert epsilon_of([Mechanism(1e4)], 0.01) == 0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_calibrated_noise_uses_the_budget_and_does_not_pass_it(epsilon: float) -> None:
    def at(scale: float) -> list[Mechanism]:
        return [Mechanism(scale, 0.2, 25), Mechanism(4 * scale)]

    spent = epsilon_of(at(calibrate(at, epsilon, 1e-3)), 1e-3)
    assert 0.98 * epsilon < spent <= epsilon


def test_a_replaced_unit_costs_twice_the_sensitivity_of_an_added_one() -> None:
    """Without sampling exactly that; with it, at least what a numerical search for a worst pair finds."""
    assert epsilon_of([Mechanism(3.0)] * 4, 1e-3, replaced=True) == epsilon_of([Mechanism(1.5)] * 4, 1e-3)
    for noise, rate in ((1.0, 0.2), (2.0, 0.01), (0.7, 0.5)):
        # One step, P and Q with the unit at +1 and at -1: the divergence of order 2 by numerical integration.
        x = np.linspace(-60, 60, 400_001)
        density = [np.exp(-((x - at) ** 2) / (2 * noise**2)) for at in (0, 1, -1)]
        p, q = ((1 - rate) * density[0] + rate * density[i] for i in (1, 2))
        area = np.trapezoid(density[0], x)
        pair = math.log(np.trapezoid(np.where(q > 0, p**2 / np.maximum(q, 1e-300), 0), x) / area)
        bound = curve_replaced(noise, rate)[ORDERS.index(2.0)]
        assert pair <= bound
    releases = [Mechanism(1.0, 0.2, 25), Mechanism(4.0)]
    assert epsilon_of(releases, 1e-3, replaced=True) > 2 * epsilon_of(releases, 1e-3)


def test_rounds_are_affordable_until_the_budget_is_passed() -> None:
    each = Mechanism(1.0, 0.2, 25)
    two = epsilon_of([each] * 2, 1e-3)
    assert affordable([], [each] * 6, two, 1e-3) == 2
    assert affordable([], [each] * 6, two * 0.999, 1e-3) == 1
    assert affordable([each], [each] * 6, two, 1e-3) == 1
    assert affordable([], [each] * 6, 1e6, 1e-3) == 6


def test_a_budget_that_no_noise_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise reaches epsilon 1e-06"):
        calibrate(lambda scale: [Mechanism(scale)], 1e-6, 1e-5)


# --- Noise -------------------------------------------------------------------------------------------


def test_seeded_noise_repeats_and_the_systems_does_not() -> None:
    nothing = np.zeros(4, np.int64)

    def noise(source: NoiseSource) -> list[int]:
        return source.add_to(nothing, 1, 1.0).tolist()

    assert noise(NoiseSource.seeded(0, "a")) == noise(NoiseSource.seeded(0, "a"))
    assert noise(NoiseSource.seeded(0, "a")) != noise(NoiseSource.seeded(0, "b"))
    assert noise(NoiseSource.from_system()) != noise(NoiseSource.from_system())


def test_every_unit_is_sampled_by_itself_at_the_rate() -> None:
    source = NoiseSource.seeded(1, "sample")
    counts = [sum(source.takes_part(step, str(i), 0.2) for i in range(100)) for step in range(500)]
    assert np.mean(counts) == pytest.approx(20, abs=1)
    assert np.var(counts) == pytest.approx(100 * 0.2 * 0.8, rel=0.25)
    assert all(source.takes_part(1, str(i), 1.0) for i in range(7))
    assert not source.takes_part(1, "0", 1e-20)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        NoiseSource(b"short")


# --- Private training ----------------------------------------------------------------------------------


def examples() -> list[Example]:
    """Eleven images with an instance, and one with none."""
    labels = np.zeros((64, 64), np.int32)
    labels[10:40, 10:40] = 1
    seen = [torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    return [Example(z, labels if i < 11 else np.zeros_like(labels)) for i, z in enumerate(seen)]


PRIVATE_FORMS = [name for name, form in FORMS.items() if form.private]

GROUPS = ["a", "b", "c", "c", *"ddddddd", "e"]
UNITS = units_of([str(i) for i in range(12)], GROUPS, "group", most=5)
"""Images, a group, a group with more images than count, and an image with nothing in it."""


def learner(layer: torch.nn.Module, tiny: Backbone, known: Sequence[Example], **spec: Any) -> Learner:
    return Learner(layer, tiny, known, TrainingSpec(**spec), 1e-2, np.random.default_rng(0))


def shaken(form: str) -> torch.nn.Module:
    """A layer away from its start, where many gradients are zero."""
    layer = build_layer(form_spec(form), 32, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return layer


class Watched(NoiseSource):
    """Remembers the totals before noise, and adds none."""

    def __init__(self) -> None:
        super().__init__(bytes(16))
        self.totals: list[np.ndarray] = []

    def add_to(self, total_D: np.ndarray, largest: int, grid: float) -> np.ndarray:
        self.totals.append(total_D)
        return total_D


@pytest.mark.parametrize("form", PRIVATE_FORMS)
@pytest.mark.parametrize("prompts", ["point", "mixed"])
def test_a_units_gradient_has_the_same_bits_in_any_company(form: str, prompts: str, tiny: Backbone) -> None:
    known, draws = examples(), Draws(0, ("test",))

    def parts_of(units: Sequence[Unit]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        layer = shaken(form)
        for unit in units:
            layer.zero_grad()
            add_gradients(learner(layer, tiny, known, prompts=prompts, instances=1), draws, 1, unit)
            gradients = [torch.zeros(0) if p.grad is None else p.grad for p in layer.parameters()]
            found[unit.name] = b"".join(part.numpy().tobytes() for part in gradients)
        return found

    everybody = parts_of(UNITS.members)
    assert len(set(everybody.values())) == len(everybody)
    for left_out in UNITS:
        for name, part in parts_of([unit for unit in UNITS if unit != left_out]).items():
            assert part == everybody[name]


def train(
    tiny: Backbone,
    units: Units,
    noise_multiplier: float,
    known: Sequence[Example],
    noise: NoiseSource | None = None,
    **spec: float,
) -> dict[str, np.ndarray]:
    layer = build_layer(AlignmentSpec(form="scale_shift"), 32, 0)
    privacy = PrivacySpec(**{"steps": 3, **spec})
    source = noise or NoiseSource.seeded(0, "train")
    train_layer(
        layer,
        tiny,
        known,
        TrainingSpec(),
        learning_rate=1e-2,
        rng=np.random.default_rng(0),
        progress=lambda done, total: None,
        steps=PrivateSteps(units, privacy, noise_multiplier, source, Draws(0, ("test",))),
    )
    return weights_of(layer)


def moved(weights: dict[str, np.ndarray]) -> float:
    start = weights_of(build_layer(AlignmentSpec(form="scale_shift"), 32, 0))
    return max(float(np.abs(weights[name] - start[name]).max()) for name in start)


def test_a_step_without_any_unit_is_noise_alone(tiny: Backbone) -> None:
    units = single_images(1)
    assert moved(train(tiny, units, 1.0, examples(), sampling_rate=1e-9)) > 0
    assert moved(train(tiny, units, 0.0, examples(), sampling_rate=1e-9)) == 0


def test_the_same_noise_gives_the_same_layer(tiny: Backbone) -> None:
    once, again = (train(tiny, UNITS, 0.5, examples(), sampling_rate=0.5) for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_private_steps_never_ask_for_the_focal_loss(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "loss", lambda batch, spec: pytest.fail("private steps descend Dice alone"))
    assert moved(train(tiny, UNITS, 0.5, examples(), sampling_rate=1.0)) > 0


def test_without_noise_it_learns_what_plain_training_learns(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full samples, no noise, a clip that never binds: DP-SGD is Adam on the Dice loss's mean gradient."""
    monkeypatch.setattr(Batch, "loss", lambda batch, spec: batch.overlap_loss())
    known = examples()[:4]
    private = train(tiny, single_images(4), 0.0, known, clip=0.1, learning_rate=1e-2)
    layer = build_layer(AlignmentSpec(form="scale_shift"), 32, 0)
    train_layer(
        layer,
        tiny,
        known,
        TrainingSpec(epochs=3, batch_images=4),
        learning_rate=1e-2,
        rng=np.random.default_rng(0),
        progress=lambda done, total: None,
    )
    for name, plain in weights_of(layer).items():
        np.testing.assert_allclose(private[name], plain, atol=1e-3)


@pytest.mark.parametrize(("units", "rate"), [(1, 1.0), (200, 1.0), (800, 0.25), (5000, 0.2)])
def test_every_unit_takes_part_in_a_step_if_there_are_few(units: int, rate: float) -> None:
    assert PrivacySpec().rate(units) == rate
    assert PrivacySpec(sampling_rate=0.5).rate(units) == 0.5
    assert round_mechanism(PrivacySpec(), 2.0, units) == Mechanism(2.0, rate, PrivacySpec().steps)
    assert (
        PrivateSteps(single_images(units), PrivacySpec(), 1.0, NoiseSource(bytes(32)), Draws(0, ())).rate
        == rate
    )


@pytest.mark.parametrize(("noise", "share"), [(0.0, 1.0), (1.6, 1.0), (3.2, 0.5)])
def test_a_step_is_shorter_where_it_is_mostly_noise(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, noise: float, share: float
) -> None:
    """Of four images: noise of 1.6 is 0.4 of the clip for their mean. A rate in the scenario stays."""
    rates: list[float] = []

    def looked_at(model: Any, learning_rate: float) -> Any:
        rates.append(learning_rate)
        return lambda gradient_D: None

    monkeypatch.setattr("casam_core.privacy.layer_steps.adam", looked_at)
    train(tiny, single_images(4), noise, examples())
    train(tiny, single_images(4), noise, examples(), learning_rate=0.5)
    train(tiny, single_images(4), noise, examples(), sampling_rate=1.0)
    assert rates == pytest.approx([3 * share * 1e-2, 0.5, 1e-2])


@pytest.mark.parametrize("clip", [1e-5, 1e-4])
def test_no_unit_moves_the_sum_by_more_than_the_clip(clip: float, tiny: Backbone) -> None:
    """The sum of clipped gradients with and without one image whose own gradient is larger than the clip."""
    sums = []
    for count in (4, 3):
        watched = Watched()
        train(tiny, single_images(count), 0.5, examples(), watched, sampling_rate=1.0, steps=1, clip=clip)
        sums.append(watched.totals[0])
    total = PrivateSum(clip, 0.5)
    assert int(np.square(sums[0] - sums[1]).sum()) <= total.largest
    assert np.linalg.norm((sums[0] - sums[1]) * total.grid) == pytest.approx(clip, rel=1e-3)


def test_an_image_that_is_no_number_says_nothing(tiny: Backbone) -> None:
    known = examples()[:2]
    broken = [known[0], Example(torch.full((32, 8, 8), torch.nan), known[1].labels_HW)]
    both, one = Watched(), Watched()
    train(tiny, single_images(2), 1.0, broken, both, sampling_rate=1.0, steps=1)
    train(tiny, single_images(1), 1.0, broken, one, sampling_rate=1.0, steps=1)
    assert np.array_equal(both.totals[0], one.totals[0])
    assert both.totals[0].any()


def test_of_a_large_group_the_same_images_count_whatever_the_others_are() -> None:
    ids = [f"image {i}" for i in range(40)]
    counted = units_of(ids, ["p"] * 40, "group", most=3).members[0].ids
    assert len(counted) == 3
    for gone in range(40):
        rest = [image for image in ids if image != ids[gone]]
        still = units_of(rest, ["p"] * 39, "group", most=3).members[0].ids
        assert len(set(counted) & set(still)) == (2 if ids[gone] in counted else 3)


def test_units_are_images_or_groups() -> None:
    def images(groups: Sequence[str | None], unit: str, most: int = 1) -> list[tuple[int, ...]]:
        return [unit.images for unit in units_of(["1", "2", "3"], groups, unit, most)]

    assert images(["a", "b", "a"], "image") == [(0,), (1,), (2,)]
    assert images(["a", "b", "a"], "group", 2) == [(0, 2), (1,)]
    assert images(["1", None, None], "group") == [(0,), (1,), (2,)]  # no group: a unit of its own
    units = units_of(["1", "2", "3"], ["a", "b", "a"], "group", 1)
    assert (units.images, units.counted, units.count) == (3, 2, 2)


# --- The router ----------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
PUBLIC = [RNG.normal(size=16) * 4 + RNG.normal(size=(12, 16)) for _ in range(5)]
FRAME = public_statistics(PUBLIC)


@settings(max_examples=50)
@given(arrays(np.float64, 16, elements=st.floats(allow_nan=True, allow_infinity=True, width=64)))
def test_no_feature_adds_more_than_the_sensitivity(f_F: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        row = bounded_row(f_F, FRAME)
    assert np.linalg.norm(row) <= math.sqrt(3) * FRAME.clip * (1 + 1e-9)


def test_the_public_directions_are_orthonormal() -> None:
    V = FRAME.directions_FK
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-9)


def test_without_noise_the_mean_is_found_inside_the_directions() -> None:
    f_NF = PUBLIC[0] + RNG.normal(size=16) * 0.1
    summary = describe_privately(f_NF, single_images(len(f_NF)), FRAME, 0.0, NoiseSource.seeded(0))
    found = (summary["sum_F"] / summary["count"] - FRAME.mean_F) / FRAME.scale_F @ FRAME.directions_FK
    true = ((f_NF.mean(0) - FRAME.mean_F) / FRAME.scale_F) @ FRAME.directions_FK
    rows = np.stack([bounded_row(f_F, FRAME) for f_F in f_NF])[:, :-2]
    np.testing.assert_allclose(found, rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(found, true, atol=0.6)  # one image in twenty is clipped


def test_a_private_description_is_a_gaussian_routers_own_summary() -> None:
    router = build_router(GaussianSpec())
    summary = describe_privately(PUBLIC[0], single_images(12), FRAME, 1.0, NoiseSource.seeded(0))
    plain = router.sufficient_statistics(torch.from_numpy(PUBLIC[1]), 0)
    assert {k: (v.dtype, v.shape) for k, v in summary.items()} == {
        k: (v.dtype, v.shape) for k, v in plain.items()
    }
    values = np.linalg.eigvalsh(summary["outer_FF"] / 12 - np.outer(summary["sum_F"], summary["sum_F"]) / 144)
    assert values.min() > 0
    assert math.isfinite(router.score(torch.from_numpy(PUBLIC[0][0]), router.fit(summary)))
