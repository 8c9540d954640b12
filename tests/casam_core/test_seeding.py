"""Seeds: one per purpose, the same everywhere, never shared."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from casam_core.seeding import derive_seed, initialisers_from, numpy_generator

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x1f"), max_size=8)
SCOPES = st.lists(st.one_of(NAMES, st.integers(-(10**6), 10**6)), max_size=4)


def test_a_seed_is_pinned_so_that_old_runs_can_be_repeated() -> None:
    text = "\x1f".join(["0", "str:site-a", "int:2", "int:1", "str:batches"])
    want = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
    assert derive_seed(0, "site-a", 2, 1, "batches") == want == 2276629183317177317


@given(seed=st.integers(0, 2**80), scope=SCOPES)
def test_seeds_fit_numpy_and_torch_and_repeat(seed: int, scope: list[str | int]) -> None:
    derived = derive_seed(seed, *scope)
    assert 0 <= derived < 2**63
    assert derive_seed(seed, *scope) == derived
    np.random.default_rng(derived)
    torch.Generator().manual_seed(derived)


@given(st.tuples(st.integers(0, 9), SCOPES), st.tuples(st.integers(0, 9), SCOPES))
def test_different_scopes_have_different_seeds(
    one: tuple[int, list[str | int]], other: tuple[int, list[str | int]]
) -> None:
    assert (derive_seed(one[0], *one[1]) == derive_seed(other[0], *other[1])) == (one == other)


def test_neighbouring_scopes_never_meet() -> None:
    scopes = list(product([0, 1], ["a", "b", "ab", ""], [0, 1, 11, "1"], ["x", "batches"]))
    scopes += [(0,), (1,), (0, ""), (0, "a"), (0, "a", "b"), (0, "ab")]
    assert len({derive_seed(*scope) for scope in scopes}) == len(scopes)


def test_generators_start_at_the_scopes_seed_and_share_nothing() -> None:
    numpy_draw = numpy_generator(3, "a").random(4)
    numpy_generator(3, "b").random(100)
    assert np.array_equal(numpy_generator(3, "a").random(4), numpy_draw)
    assert not np.array_equal(numpy_generator(3, "b").random(4), numpy_draw)


def test_initialisers_draw_from_their_seed_and_leave_the_process_generator_alone() -> None:
    def drawn(seed: int) -> torch.Tensor:
        with initialisers_from(seed):
            return torch.nn.Linear(3, 3).weight.detach()

    before = torch.get_rng_state()
    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisers_begin_where_manual_seed_does() -> None:
    with initialisers_from(11):
        ours = torch.nn.Linear(3, 3).weight.detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        assert torch.equal(ours, torch.nn.Linear(3, 3).weight.detach())
