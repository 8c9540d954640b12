"""A site and the public library of layers: it accepts only the one that its approved scenario names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.config.public_files import file_of
from casam_core.model.layer_library import LIBRARIES
from casam_core.protocol.messages import AlignRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job
from client.dp.noisy_layer import align_privately
from client.institution import Institution
from client.release.ledger import Ledger
from tests.banks import random_library
from tests.client.test_institution import institution
from tests.conftest import tiny_table

POLICY = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.05},
}


def private_site(folder: Path, library_form: str = "low_rank", **changes: Any) -> tuple[Institution, bytes]:
    """A site whose scenario names a library that is not on this machine any more, and the library's file."""
    digest = random_library(library_form)
    data = LIBRARIES.data(digest, LIBRARIES.here)
    file_of(LIBRARIES.here, digest).unlink()
    table = tiny_table()["institutions"]
    sites = [site | ({"policy": POLICY} if site["name"] == "north" else {}) for site in table]
    changes = {"alignment": {"form": "low_rank"}, "institutions": sites} | changes
    privacy = {"method": "public_start", "library": digest, "steps": 2}
    return institution("north", folder, privacy=privacy, **changes), data


def refused(site: Institution) -> Outcome:
    with pytest.raises(RefusalError) as refusal:
        align_privately(site, AlignRequest(Job("north", 1, "polyp")))
    return refusal.value.outcome


@pytest.mark.parametrize("strategy", ["fedprox", "scaffold"])
def test_strategies_that_change_training_have_no_training_with_noise(tmp_path: Path, strategy: str) -> None:
    site, data = private_site(tmp_path, training={"strategy": strategy})
    site.learn_public([data])
    assert refused(site) == Outcome.NOISE_NOT_POSSIBLE


def test_the_named_library_is_kept_and_a_round_is_a_line_of_the_ledger(tmp_path: Path) -> None:
    site, data = private_site(tmp_path)
    site.learn_public([data])
    reply = align_privately(site, AlignRequest(Job("north", 1, "polyp")))
    assert all(np.isfinite(value).all() for value in reply.layer.values())
    spends = Ledger(site.site.ledger).lines()
    assert [spend.kind for spend in spends] == ["align"]
    assert {spend.run for spend in spends} == {site.site.run}
    # The same question gets the same bytes, and costs nothing.
    again = align_privately(site, AlignRequest(Job("north", 1, "polyp")))
    assert all(np.array_equal(again.layer[name], value) for name, value in reply.layer.items())
    assert len(Ledger(site.site.ledger).lines()) == 1


def test_a_later_round_starts_from_the_merged_layer_and_costs_as_much_as_the_first(tmp_path: Path) -> None:
    site, data = private_site(tmp_path, training={"rounds": 2})
    site.learn_public([data])
    first = align_privately(site, AlignRequest(Job("north", 1, "polyp"))).layer
    merged = {name: value if name == "down_RC" else 3 + value for name, value in first.items()}
    last = align_privately(site, AlignRequest(Job("north", 1, "polyp", 2), merged)).layer
    assert np.abs(last["shift_C"] - merged["shift_C"]).max() < 1 < np.abs(last["shift_C"]).min()
    one, other = Ledger(site.site.ledger).lines()
    assert (one.kind, one.mechanism) == (other.kind, other.mechanism)


def test_another_library_than_the_approved_one_is_refused_by_name(tmp_path: Path) -> None:
    site, data = private_site(tmp_path)
    with pytest.raises(RefusalError) as refusal:
        site.learn_public([data.replace(b"0.2, 0.05]", b"0.1, 0.05]")])
    assert refusal.value.outcome == Outcome.OTHER_PUBLIC_FILE
    kept = site.site.folder_of(LIBRARIES)
    assert not kept.exists() or not list(kept.iterdir())


def test_a_missing_library_is_asked_for_and_nothing_is_computed_without_it(tmp_path: Path) -> None:
    site, _ = private_site(tmp_path)
    with pytest.raises(RefusalError, match="there is no layer library") as refusal:
        site.learn_public([])
    assert refusal.value.outcome == Outcome.UNKNOWN_SCENARIO
    assert not Ledger(site.site.ledger).lines()


def test_a_library_for_another_form_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    site, data = private_site(tmp_path, library_form="scale_shift")
    site.learn_public([data])
    assert refused(site) == Outcome.OTHER_PUBLIC_FILE
    assert not Ledger(site.site.ledger).lines()


def test_a_round_that_the_budget_cannot_pay_as_a_whole_is_refused_as_a_whole(tmp_path: Path) -> None:
    privacy = {"method": "public_start", "noise_multiplier": 1.0}
    digest = random_library("low_rank")
    table = tiny_table()["institutions"]
    tight = POLICY | {"budget": {"epsilon": 2.0, "epsilon_metrics": 8.0, "delta": 0.05}}
    sites = [site | ({"policy": tight} if site["name"] == "north" else {}) for site in table]
    site = institution(
        "north",
        tmp_path,
        institutions=sites,
        alignment={"form": "low_rank"},
        privacy=privacy | {"library": digest},
    )
    site.learn_public([])
    assert refused(site) == Outcome.BUDGET_SPENT
    assert not Ledger(site.site.ledger).lines()


def test_layers_of_several_private_holders_can_be_averaged(tmp_path: Path) -> None:
    """Both pay for their own noise, and keep the basis that the library shares."""
    digest, table = random_library("low_rank"), tiny_table()["institutions"]
    data = {"polyp": table[0]["data"]["polyp"]}
    sites = [{"name": name, "data": data, "policy": POLICY} for name in ("north", "south")]
    privacy = {"method": "public_start", "library": digest, "steps": 2}
    settings = {
        "stream": ["polyp"],
        "institutions": sites,
        "alignment": {"form": "low_rank"},
        "privacy": privacy,
    }
    layers = []
    for name in ("north", "south"):
        site = institution(name, tmp_path / name, **settings)
        layers.append(align_privately(site, AlignRequest(Job(name, 1, "polyp"))).layer)
        assert [spend.kind for spend in Ledger(site.site.ledger).lines()] == ["align"]
    shared = LIBRARIES.get(digest, LIBRARIES.here).shared
    assert all(np.array_equal(layer["down_RC"], shared["down_RC"]) for layer in layers)
    assert not np.array_equal(layers[0]["up_CR"], layers[1]["up_CR"])
