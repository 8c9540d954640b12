"""Scoring a whole bank in one pass decides nothing by itself: routes keep the bits of one-by-one scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casam_core.bank.entry_file import Entry
from casam_core.routing.routers import Arrays, GaussianSpec, build_router
from casam_use import loaded_bank
from casam_use.loaded_bank import LoadedBank
from casam_use.router_stack import GaussianStack
from tests.banks import picture, tiny_backbone, tiny_entry

ROUTER = build_router(GaussianSpec())
DIRECTIONS = GaussianSpec().directions


def states(tasks: int, width: int, images: int, seed: int, spread: float = 1.0) -> list[Arrays]:
    """States of random tasks; a small spread makes them hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(tasks):
        centre = 5 + spread * torch.randn(width, generator=generator)
        f_NF = centre + 0.3 * torch.randn(images, width, generator=generator)
        made.append(ROUTER.fit(ROUTER.sufficient_statistics(f_NF, 0)))
    return made


def one_by_one(f_F: Tensor, known: list[Arrays]) -> list[float]:
    return [ROUTER.score(f_F, state) for state in known]


@settings(max_examples=30, deadline=None)
@given(
    tasks=st.integers(1, 12),
    width=st.sampled_from([1, 7, 64]),
    images=st.sampled_from([1, 2, 9, DIRECTIONS + 8]),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_no_score_is_farther_from_the_routers_own_than_its_error(
    tasks: int, width: int, images: int, seed: int, spread: float
) -> None:
    known = states(tasks, width, images, seed, spread)
    f_F = torch.randn(width, generator=torch.Generator().manual_seed(seed + 1)) + 5
    score_T, error_T = GaussianStack(known).score(f_F)
    want = np.array(one_by_one(f_F, known))
    assert (np.abs(score_T - want) <= error_T).all()
    assert int(np.argmin(want)) in GaussianStack(known).contenders(f_F)


def test_the_errors_are_small_enough_to_choose_by() -> None:
    known = states(40, 64, 24, seed=3)
    f_F = torch.from_numpy(np.asarray(known[7]["mean_F"]))
    assert GaussianStack(known).contenders(f_F) == [7]


def test_equal_states_are_all_contenders() -> None:
    known = states(5, 16, 12, seed=1)
    twins = [*known, known[2], known[2]]
    assert {2, 5, 6} <= set(GaussianStack(twins).contenders(torch.from_numpy(np.asarray(known[2]["mean_F"]))))


def test_a_state_without_directions_stands_beside_one_with_some() -> None:
    known = [*states(1, 16, 1, seed=0), *states(1, 16, 20, seed=1)]
    assert [len(state["directions_KF"]) for state in known] == [0, 16]
    f_F = torch.randn(16, generator=torch.Generator().manual_seed(2)) + 5
    score_T, _ = GaussianStack(known).score(f_F)
    np.testing.assert_allclose(score_T, one_by_one(f_F, known), rtol=1e-5)


def test_a_score_that_is_no_number_is_left_to_the_router() -> None:
    known = states(3, 16, 12, seed=4)
    known[1] = {**known[1], "mean_F": np.full(16, np.nan, np.float32)}
    f_F = torch.from_numpy(np.asarray(known[2]["mean_F"]))
    assert GaussianStack(known).contenders(f_F) == [1, 2]


def many_entries(tasks: int, kind: str) -> list[Entry]:
    """Tasks around the two pictures' tasks, each a little aside."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(tasks):
        entry = tiny_entry(("polyp", "histology")[number % 2], kind=kind)
        (mean,) = (name for name in entry.router if name.startswith("mean"))
        aside = rng.normal(0, 1e-3, entry.router[mean].shape).astype(np.float32)
        router = {**entry.router, mean: entry.router[mean] + aside}
        found.append(replace(entry, task=f"task-{number}", router=router))
    return found


@pytest.mark.parametrize("kind", ["gaussian", "public_frame"])
def test_a_large_bank_routes_with_the_bits_of_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = many_entries(loaded_bank.STACK_FROM + 4, kind)
    z_BCHW = tiny_backbone().encode([picture(task, i) for task in ("polyp", "histology") for i in range(4)])
    stacked = LoadedBank(entries, "digest")
    assert stacked._stack is not None
    monkeypatch.setattr(loaded_bank, "STACK_FROM", 1000)
    single = LoadedBank(entries, "digest")
    assert single._stack is None
    assert stacked.route(z_BCHW) == single.route(z_BCHW)


@pytest.mark.parametrize("kind", ["gaussian", "public_frame"])
def test_entries_without_a_threshold_stay_out_of_the_stack(kind: str) -> None:
    entries = many_entries(loaded_bank.STACK_FROM + 1, kind)
    named_only = [replace(entry, threshold=None) for entry in entries[:1]]
    bank = LoadedBank([*named_only, *entries[1:]], "digest")
    (route,) = bank.route(tiny_backbone().encode([picture("polyp")]))
    assert route.nearest != "task-0"
