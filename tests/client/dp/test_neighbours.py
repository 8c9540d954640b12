"""Differential privacy of the whole pipeline, measured: one unit changes no sum by more than is paid for.

A site is run from its files to its answers on a dataset and on two neighbours: with one unit less, and with
one unit replaced. Before every noise the sums are compared; what leaves without noise must be equal. Broken
pipelines show that the comparison finds what it looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from casam_core.config.policy import BudgetPolicy
from casam_core.model.backbones.mask_decoder import decode_prompts
from casam_core.model.forms import FORMS
from casam_core.privacy.private_sum import PrivateSum
from casam_core.privacy.public_descent import PublicDescent
from casam_core.privacy.units import units_of
from casam_core.seeding import Draws
from client.data.dataset import Sample
from client.data.splits import PARTS, Split, place_of, simulated_key
from client.evaluation.own_entries import known_entries
from client.institution import Institution
from client.release import permission
from tests.banks import random_library
from tests.client.dp.neighbours import NAME, Case, Dataset, differences, linear_decode, run

PRIVATE_FORMS = sorted(name for name, form in FORMS.items() if form.private)
ROUTERS = ["public_frame", "public_frame", "gaussian", "vae", "nearest_mean"]
PROMPTS = ["box", "point", "jittered_box", "clicks", "box_clicks"]
LEAST = 3
"""Units in every split."""


def units_for(seed: int, sizes: list[int], group: bool) -> Mapping[str, tuple[int, ...]]:
    """Units of these sizes, and as many more of one image as every split needs."""
    key, found = simulated_key(seed, NAME), {}
    places = []
    number = 0
    while number < len(sizes) or min(np.histogram(places, [0, 0.3, 0.6, 1])[0]) < LEAST:
        size = sizes[number] if number < len(sizes) and group else 1
        name = f"p{number}"
        sample = Sample(f"{name}_0", name if group else None)
        places.append(place_of([sample], key))
        found[name] = tuple(1000 * number + seed + i for i in range(size))
        number += 1
    return found


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Everything leaves with noise or not at all."""
    unit = draw(st.sampled_from(["image", "group"]))
    budget: dict[str, Any] = {
        "epsilon": draw(st.sampled_from([0.5, 9.0, 60.0])),
        "epsilon_metrics": draw(st.sampled_from([0.05, 8.0])),
        "delta": 0.01,
        "unit": unit,
    }
    if unit == "group" and draw(st.booleans()):
        budget["images_per_unit"] = draw(st.integers(1, 3))
    return {
        "adapter": draw(st.sampled_from([{"noise": "dp"}, {"noise": "dp"}, {"share": "never"}])),
        "router": draw(st.sampled_from([{"noise": "dp"}, {"noise": "dp"}, {"share": "never"}])),
        "metrics": draw(st.sampled_from(["noisy", "noisy", "never"])),
        "canaries": draw(st.sampled_from([0, 1])),
        "budget": budget,
    }


def public_start(form: str, sampling_rate: float = 1.0) -> dict[str, Any]:
    """Settings of a run whose private training starts from a library."""
    privacy = {
        "method": "public_start",
        "library": random_library(form),
        "steps": 2,
        "sampling_rate": sampling_rate,
        "noise_multiplier": 1.0,
        "clip": 1e-5,
    }
    return {"alignment": {"form": form}, "privacy": privacy}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int, int]:
    """(a site, the number of the unit that leaves, the seed of the unit that replaces it)."""
    policy = draw(policies())
    seed = draw(st.integers(0, 10_000))
    sizes = draw(st.lists(st.integers(1, 6), min_size=9, max_size=11))
    dataset = Dataset(units_for(seed, sizes, policy["budget"]["unit"] == "group"))
    settings = {
        "training": {
            "epochs": 1,
            "batch_images": 4,
            "rounds": draw(st.integers(1, 2)),
            "instances": draw(st.integers(1, 2)),
            "prompts": draw(st.sampled_from(["box", "point", "mixed"])),
        },
        "privacy": {"steps": 2, "sampling_rate": draw(st.sampled_from([0.3, 1.0])), "noise_multiplier": 1.0},
        "alignment": {"form": draw(st.sampled_from(PRIVATE_FORMS))},
        **draw(st.sampled_from([{}, {}, public_start("low_rank"), public_start("scale_shift", 0.3)])),
        "router": {"kind": draw(st.sampled_from(ROUTERS)), "folds": 2},
        "evaluation": {"max_instances": 2, "prompts": draw(st.sampled_from(PROMPTS))},
    }
    reader = draw(st.sampled_from(["folder", "coco", "yolo"]))
    case = Case(dataset, reader, policy, settings, seed, alone=draw(st.booleans()))
    return case, draw(st.integers(0, len(dataset.units) - 1)), draw(st.integers(20_000, 30_000))


def compared(case: Case, left: int, new: int, folder: Path) -> list[str]:
    """What differs too much without unit number `left`, and with another one in its place."""
    name = list(case.dataset.units)[left]
    seeds = tuple(range(new, new + len(case.dataset.units[name]) % 6 + 1))
    removed = replace(case, dataset=case.dataset.without(name))
    other = name if new % 2 == 0 else "new"
    seeds = seeds if case.policy["budget"]["unit"] == "group" else seeds[:1]
    replaced = replace(case, dataset=case.dataset.replaced(name, other, seeds))
    one = run(case, folder / "one")
    found = differences(one, run(removed, folder / "removed", one), {name}, replaced=False)
    return found + differences(one, run(replaced, folder / "replaced", one), {name, other}, replaced=True)


QUICK = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(cases())
def test_no_unit_changes_more_than_is_paid_for(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Case, int, int]
) -> None:
    assert compared(*drawn, tmp_path_factory.mktemp("site")) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(QUICK, max_examples=340)
@given(cases(), st.sampled_from([linear_decode, linear_decode, linear_decode, decode_prompts]))
def test_of_a_thousand_sites_none_does(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Case, int, int], decode: Callable[..., Any]
) -> None:
    """340 datasets with two neighbours each, a quarter of them with SAM's decoder."""
    with patch("casam_core.model.backbones.base.decode_prompts", decode):
        assert compared(*drawn, tmp_path_factory.mktemp("site")) == []


# --- Some releases with noise, others without ----------------------------------------------------------

OPEN_LAYERS = {"adapter": {}, "router": {}}
OPEN_METRICS = {"metrics": "exact", "canaries": 1}


@pytest.mark.parametrize(
    ("opened", "part"), [(OPEN_LAYERS, "val"), (OPEN_LAYERS, "test"), (OPEN_METRICS, "train")]
)
def test_what_leaves_without_noise_knows_nothing_of_the_images_behind_noise(
    opened: Mapping[str, Any], part: str, tmp_path: Path
) -> None:
    case = opened_site(opened)
    number = next(n for n, name in enumerate(case.dataset.units) if part_of(name) == part)
    assert (
        compared(case, number, 20_000, tmp_path) == []
    )  # the other unit has the same name, so the same part


def test_an_open_layer_that_validation_images_decide_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the images of a split decide a seed; an epoch that they choose would be the same fault."""
    honest = Institution.draws

    def draws(self: Institution, job: Any, purpose: str) -> np.random.Generator:
        ids = "".join(sample.id for sample in self.task("polyp").split.val)
        return honest(self, job, purpose + ids)

    monkeypatch.setattr(Institution, "draws", draws)
    assert finds("without noise, align 1 differ", "val", opened_site(OPEN_LAYERS), tmp_path)


# --- Broken pipelines: the comparison finds them -------------------------------------------------------


def a_site(**changes: Any) -> Case:
    """Everything leaves with noise; groups of up to six images, of which two count."""
    policy = {
        "adapter": {"noise": "dp"},
        "router": {"noise": "dp"},
        "metrics": "noisy",
        "budget": {
            "epsilon": 60.0,
            "epsilon_metrics": 8.0,
            "delta": 0.01,
            "unit": "group",
            "images_per_unit": 2,
        },
    }
    settings = {
        "training": {"epochs": 1, "instances": 1, "prompts": "mixed"},
        "privacy": {"steps": 2, "sampling_rate": 1.0, "noise_multiplier": 1.0, "clip": 1e-5},
        "alignment": {"form": "scale_shift"},
        "router": {"kind": "gaussian", "folds": 2},
    }
    units = dict(units_for(7, [1] * 10, group=True))
    largest = next(name for name in units if part_of(name) == "test")
    units[largest] = tuple(range(7, 13))
    return replace(Case(Dataset(units), "folder", policy, settings, seed=7, alone=True), **changes)


def opened_site(opened: Mapping[str, Any]) -> Case:
    """The same with some clauses of its policy without noise, and with every choice that validation makes."""
    case = a_site()
    training = {"epochs": 2, "keep_best": True, "fallback_to_identity": True}
    settings = {**case.settings, "training": training, "alignment": {"form": "scale_shift", "personal": True}}
    return replace(case, policy={**case.policy, **opened}, settings=settings)


def part_of(name: str) -> str:
    """The split of a unit of `a_site`."""
    place = place_of([Sample(f"{name}_0", name)], simulated_key(7, NAME))
    return "test" if place < 0.3 else "val" if place < 0.6 else "train"


def finds(text: str, part: str, case: Case, folder: Path) -> bool:
    """Whether the comparison finds this for the first units of a split."""
    numbers = [n for n, name in enumerate(case.dataset.units) if part_of(name) == part][:3]
    return any(text in found for n in numbers for found in compared(case, n, 20_001 + n, folder / str(n)))


def test_a_clip_that_is_twice_too_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PrivateSum.steps_of

    def lax(self: PrivateSum, row_D: NDArray[np.float64]) -> NDArray[np.int64]:
        return honest(PrivateSum(2 * self.norm, self.noise_multiplier / 2), row_D)

    monkeypatch.setattr(PrivateSum, "steps_of", lax)
    text = "'align', 1, 1, 'polyp', 0): one unit moved the sum by 2.00 x its norm"
    assert finds(text, "train", a_site(), tmp_path)


@pytest.mark.parametrize("form", ["low_rank", "scale_shift"])
def test_training_from_a_public_start_moves_sums_by_what_is_paid_for(form: str, tmp_path: Path) -> None:
    case = a_site()
    case = replace(case, settings={**case.settings, **public_start(form)})
    numbers = [n for n, name in enumerate(case.dataset.units) if part_of(name) == "train"][:2]
    for n in numbers:
        assert compared(case, n, 20_001 + n, tmp_path / str(n)) == []
    seen = run(case, tmp_path / "seen")
    assert [kind for kind, _, split, *_ in seen.spends if split == "train"] == ["align", "router", "scores"]
    assert len([place for place in seen.totals if place[0] == "align"]) == 2


def test_a_filter_that_looks_at_the_gradients_before_their_noise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, clean = PrivateSum.release, []

    def release(self: PrivateSum, rows: Any, width: int, noise: Any) -> NDArray[np.float64]:
        kept = list(rows)
        clean.append(np.sum(kept, axis=0) if kept else np.zeros(width))
        return honest(self, kept, width, noise)

    def step(self: PublicDescent, gradient_D: NDArray[np.float64]) -> NDArray[np.float64]:
        moved_D: NDArray[np.float64] = -clean[-1]
        return moved_D

    monkeypatch.setattr(PrivateSum, "release", release)
    monkeypatch.setattr(PublicDescent, "step", step)
    case = a_site()
    case = replace(case, settings={**case.settings, **public_start("scale_shift")})
    assert finds("without noise, align 1 differ", "train", case, tmp_path)


@pytest.mark.parametrize("router", ["gaussian", "vae"])
def test_draws_from_one_stream_are_found(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: dict[Any, np.random.Generator] = {}

    def next_of(self: Draws, *item: str | int) -> np.random.Generator:
        return streams.setdefault(self.scope, np.random.default_rng(self.run_seed))

    honest = run

    def run_anew(*args: Any) -> Any:
        streams.clear()
        return honest(*args)

    monkeypatch.setattr(Draws, "generator", next_of)
    monkeypatch.setattr(Draws, "seed", lambda self, *item: int(next_of(self).integers(2**60)))
    monkeypatch.setattr("tests.client.dp.test_neighbours.run", run_anew)
    case = a_site()
    case = replace(case, settings={**case.settings, "router": {"kind": router, "folds": 2}})
    place = "'align', 1, 1" if router == "gaussian" else "'router', 1, 1"
    assert finds(place, "train", case, tmp_path)


def test_a_bound_that_follows_from_the_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: all images of a unit count, and the noise follows the largest unit that the site has."""
    largest = {}

    def units(self: Institution, task: str, part: Any) -> Any:
        samples = self.task(task).split.part(part)
        ids, groups = [s.id for s in samples], [s.group for s in samples]
        own = units_of(ids, groups, "group", len(ids))
        largest[id(self.site.policy.budget)] = max(len(unit.images) for unit in own)
        return own

    monkeypatch.setattr(Institution, "units", units)
    monkeypatch.setattr(BudgetPolicy, "contribution", property(lambda self: largest[id(self)]))
    assert finds("the scale of the noise depends on the images", "test", a_site(), tmp_path)


def test_an_own_entry_in_the_figures_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that was refused for the budget, learned without noise, and used for scores that leave."""
    monkeypatch.setattr(
        "client.release.permission.KnownEntries",
        lambda bank: known_entries(holder[-1], bank),
    )
    holder: list[Institution] = []
    honest = permission.evaluate

    def evaluate(institution: Institution, request: Any) -> Any:
        holder.append(institution)
        return honest(institution, request)

    monkeypatch.setattr(permission, "evaluate", evaluate)
    case = a_site()
    spent = {**case.policy, "budget": {**case.policy["budget"], "epsilon": 0.5}}
    changes = {
        "alignment": {"form": "scale_shift", "learning_rate": 0.3},
        "training": {"epochs": 4, "batch_images": 1, "fallback_to_identity": False},
        "router": {"kind": "gaussian", "folds": 2, "margin": 1e4},
    }
    case = replace(case, policy=spent, settings={**case.settings, **changes})
    assert finds("a unit of another split moved the sum", "train", case, tmp_path)


def test_a_split_by_position_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: one unit less moves others between the splits."""

    def by_position(samples: tuple[Sample, ...], *_: Any, **__: Any) -> Split:
        names = sorted({sample.group or sample.id for sample in samples})
        part_of = {name: PARTS[number % 3] for number, name in enumerate(names)}
        parts = {part: tuple(s for s in samples if part_of[s.group or s.id] == part) for part in PARTS}
        return Split(**parts)

    monkeypatch.setattr("client.data.task_data.split_samples", by_position)
    assert finds("moved the sum", "train", a_site(), tmp_path)
