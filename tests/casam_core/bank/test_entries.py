"""Entries in half precision: half the bytes, the same answers but for rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from casam_core.bank.entries import half, make_entry, rounded
from casam_core.bank.entry_file import Entry
from casam_core.bank.inference import entry_layer
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError
from casam_core.model.forms import LowRankSpec, build_layer, weights_of
from casam_core.routing.routers import GaussianSpec, build_router
from casam_use.loaded_bank import LoadedBank, LoadedEntry
from tests.conftest import tiny_table

WIDTH = 64


def made(precision: str, **router: Any) -> Entry:
    """An entry of random numbers, as a stage makes it, with a Gaussian router."""
    kind = {"kind": "gaussian", **router}
    scenario = Scenario.model_validate(tiny_table(bank={"precision": precision}, router=kind))
    layer = build_layer(LowRankSpec(), WIDTH // 2, 0)
    torch.nn.init.normal_(layer.up_CR, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    made = build_router(scenario.router)
    f_NF = 5 + torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(2))
    return make_entry(
        scenario,
        "0" * 64,
        task="polyp",
        stage=1,
        layer=weights_of(layer),
        improved=True,
        holders=("north",),
        images=48,
        router=made.fit(made.sufficient_statistics(f_NF, 0)),
        threshold=1.0,
    )


def test_matrices_are_halved_and_vectors_are_not() -> None:
    entry = Entry.from_bytes(made("float16").to_bytes())
    kinds = {name: str(value.dtype) for name, value in (entry.layer | entry.router).items()}
    assert kinds == {
        "down_RC": "float16", "up_CR": "float16", "shift_C": "float32",
        "mean_F": "float32", "diagonal_F": "float32", "directions_KF": "float16",
    }  # fmt: skip
    whole, halved = (len(made(precision).to_bytes()) for precision in ("float32", "float16"))
    matrices = 4 * (2 * 8 * 32 + 32 * WIDTH)
    assert whole - halved == pytest.approx(matrices / 2, abs=16)  # names of types in the header


def test_a_halved_entry_aligns_and_routes_as_the_whole_one_does() -> None:
    whole, halved = made("float32"), Entry.from_bytes(made("float16").to_bytes())
    z_BCHW = torch.randn(1, WIDTH // 2, 8, 8, generator=torch.Generator().manual_seed(3))
    want, got = (entry_layer(entry, WIDTH // 2)(z_BCHW) for entry in (whole, halved))
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    assert not torch.equal(got, want)
    scores = [LoadedEntry.of(entry).score(z_BCHW[0]) for entry in (whole, halved)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-2)
    (route,) = LoadedBank([halved], "digest").route(z_BCHW)
    assert route.score == scores[1]


def test_what_half_precision_cannot_hold_stays_whole() -> None:
    small, large = np.ones((2, 2), np.float32), np.full((2, 2), 1e6, np.float32)
    assert half(small).dtype == np.float16
    assert half(large) is large
    assert rounded({"vector": np.full(2, 1e-9, np.float32)})["vector"][0] == np.float32(1e-9)


def test_fewer_directions_make_a_smaller_entry_that_still_scores() -> None:
    entry = made("float32", directions=4)
    assert entry.router["directions_KF"].shape == (4, WIDTH)
    assert np.isfinite(LoadedEntry.of(entry).score(torch.ones(WIDTH // 2, 4, 4)))
    assert made("float32", directions=0).router["directions_KF"].shape == (0, WIDTH)


def test_the_default_changes_nothing() -> None:
    assert {value.dtype for value in made("float32").layer.values()} == {np.dtype(np.float32)}
    assert GaussianSpec().directions == 32


def test_a_correction_is_kept_with_the_layer_that_it_belongs_to() -> None:
    told = replace(made("float16"), correction=-0.125)
    assert Entry.from_bytes(told.to_bytes()).correction == told.head.correction == -0.125
    # An entry without one has the bytes of a version that knew no correction.
    assert b"correction" not in made("float16").to_bytes()
    with pytest.raises(BankError, match="expected a number from -1 to 1, found 3"):
        Entry.from_bytes(replace(told, correction=3.0).to_bytes())


def test_the_identity_has_no_correction() -> None:
    scenario, layer = Scenario.model_validate(tiny_table()), weights_of(build_layer(LowRankSpec(), 32, 0))
    about: dict[str, Any] = {"task": "polyp", "stage": 1, "layer": layer, "holders": (), "images": 1}
    about |= {"router": {}, "threshold": None, "correction": 0.1}
    kept = [make_entry(scenario, "0" * 64, improved=improved, **about) for improved in (True, False)]
    assert [entry.correction for entry in kept] == [0.1, None]
