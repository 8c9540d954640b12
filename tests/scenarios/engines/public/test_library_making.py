"""The library of layers of a backbone: made from phantoms, kept, sent to the sites, and used by name."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from casam_core.model.layer_library import LIBRARIES
from client.release.ledger import Ledger
from client.site import Site
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.public import library_making
from scenarios.engines.public.library_making import about_library, difference_to_a_new_one, with_library
from tests.conftest import tiny_table, with_policies

PRIVATE = {
    "adapter": {"noise": "dp"},
    "router": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.05},
}


def quick(monkeypatch: pytest.MonkeyPatch, form: str = "scale_shift") -> Scenario:
    """A scenario with one private institution, whose library is made in few steps."""
    for name, value in {
        "JOINT_STEPS": 4,
        "GRADIENTS": 2,
        "DIRECTIONS": 8,
        "IMAGES": 3,
        "RECOLOURED": 1,
    }.items():
        monkeypatch.setattr(library_making, name, value)
    privacy = {"method": "public_start", "steps": 2}
    table = tiny_table(stream=["polyp"], alignment={"form": form}, privacy=privacy)
    return Scenario.model_validate(with_policies(table, north=PRIVATE))


@cache
def made(form: str) -> tuple[str, bytes]:
    """A quick library: its digest and its file."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("CASAM_HOME", home)
        digest = with_library(quick(patch, form)).privacy.library
        assert digest is not None
        return digest, LIBRARIES.data(digest, LIBRARIES.here)


def with_made(scenario: Scenario) -> Scenario:
    """The scenario with the library that was made before."""
    digest, data = made(scenario.alignment.form)
    assert LIBRARIES.keep(data, LIBRARIES.here) == digest
    return scenario.model_copy(update={"privacy": scenario.privacy.model_copy(update={"library": digest})})


def test_a_missing_library_is_made_and_travels_and_training_with_it_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = with_library(quick(monkeypatch))
    digest = scenario.privacy.library
    assert digest is not None
    assert with_library(scenario) == scenario
    assert made("scale_shift")[0] == digest  # equal images give equal bytes
    # The sites have folders of their own, as on other machines: the library can only come with a message.
    monkeypatch.setattr(Site, "folder_of", lambda site, kind: tmp_path / "at the sites" / kind.folder)
    run_inprocess(scenario, tmp_path / "run", None)
    assert [p.stem for p in (tmp_path / "at the sites" / "libraries").iterdir()] == [digest]
    spends = Ledger(tmp_path / "run" / "institutions" / "north" / "private" / "ledger.jsonl").lines()
    assert [s.kind for s in spends if s.split == "train"] == ["align", "router"]


@pytest.mark.parametrize("form", ["low_rank", "scale_shift"])
def test_a_library_holds_a_joint_layer_and_directions_that_gradients_share(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = with_made(quick(monkeypatch, form))
    library = LIBRARIES.get(scenario.privacy.library or "", LIBRARIES.here)
    rows_KD = library.rows(sorted(library.joint))
    assert rows_KD @ rows_KD.T == pytest.approx(np.eye(8), abs=0.01)
    assert list(library.shares_K) == sorted(library.shares_K, reverse=True)
    assert library.shares_K.sum() == pytest.approx(1 - library_making.MISSED, abs=1e-4)
    assert ("down_RC" in library.shared) == (form == "low_rank")
    assert about_library(scenario)["directions"] == "8"


def test_a_library_made_again_is_the_same_and_another_joint_layer_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = with_made(quick(monkeypatch))
    assert difference_to_a_new_one(scenario) == pytest.approx(0, abs=1e-3)
    library = LIBRARIES.get(scenario.privacy.library or "", LIBRARIES.here)
    other = replace(library, joint={name: -value for name, value in library.joint.items()})
    digest = LIBRARIES.keep(other.to_bytes(), LIBRARIES.here)
    privacy = scenario.privacy.model_copy(update={"library": digest})
    assert difference_to_a_new_one(scenario.model_copy(update={"privacy": privacy})) == pytest.approx(
        2, abs=0.01
    )


def test_a_form_that_no_library_can_hold_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScenarioError, match=r"can hold low_rank or scale_shift, found 'residual'"):
        with_library(quick(monkeypatch, "residual"))


def test_a_private_and_an_open_holder_of_one_task_learn_one_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start from the library's identity, so the mean of their layers is one, too."""
    scenario = quick(monkeypatch, "low_rank")
    sites = [
        site.model_copy(update={"policy": Policy.model_validate(PRIVATE)}) if site.name == "west" else site
        for site in scenario.institutions
    ]
    both = scenario.model_copy(update={"institutions": sites, "stream": ["histology"]})
    run_inprocess(with_made(both), tmp_path / "run", None)
    entry = Bank.open(tmp_path / "run" / "bank")["histology"]
    assert set(entry.provenance.holders) == {"south", "west"}
