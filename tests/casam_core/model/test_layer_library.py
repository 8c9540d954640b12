"""Public libraries of layers: their file, their starts and directions, and files that are none."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from casam_core.config.named_parts import SHIPPED_LIBRARIES, BackboneSpec, LowRankSpec
from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.errors import BankError, ScenarioError
from casam_core.methods import first_layer
from casam_core.model.forms import build_layer, form_spec, set_weights, weights_of
from casam_core.model.layer_library import IDENTITY, LIBRARIES, LayerLibrary, library_named
from tests.banks import random_library, tiny_backbone
from tests.conftest import tiny_table

CHANNELS = tiny_backbone().geometry.channels


def a_library(form: str = "low_rank") -> LayerLibrary:
    return LIBRARIES.get(random_library(form), LIBRARIES.here)


@pytest.mark.parametrize("form", ["low_rank", "scale_shift"])
def test_the_identity_is_a_start_and_its_file_gives_the_same_library(form: str) -> None:
    library = a_library(form)
    layer = build_layer(form_spec(form), CHANNELS, 3)
    set_weights(layer, library.start(IDENTITY))
    z_BCHW = torch.randn(1, CHANNELS, 4, 4)
    assert torch.equal(layer(z_BCHW), z_BCHW)
    assert library.names == (IDENTITY, "joint", "polyp")
    assert LayerLibrary.from_bytes(library.to_bytes()).to_bytes() == library.to_bytes()


def test_a_layer_moves_along_the_directions_and_keeps_what_is_shared() -> None:
    library = a_library()
    start = library.start("polyp")
    moved = library.moved(start, np.array([0.0, 2.0, 0.0]))
    for name, rows in library.directions.items():
        np.testing.assert_allclose(moved[name], start[name] + 2 * rows[1], atol=1e-6)
    assert np.array_equal(moved["down_RC"], start["down_RC"])
    np.testing.assert_allclose(library.flat_directions @ library.flat_directions.T, np.eye(3), atol=2e-3)


def test_a_gradient_along_the_directions_is_the_change_of_the_loss() -> None:
    library, layer = a_library(), build_layer(form_spec("low_rank"), CHANNELS, 3)
    z_BCHW = torch.randn(1, CHANNELS, 4, 4)

    def loss(along: float) -> torch.Tensor:
        set_weights(layer, library.moved(library.start("joint"), np.array([along, 0.0, 0.0])))
        value: torch.Tensor = layer(z_BCHW).square().mean()
        return value

    loss(0.0).backward()  # type: ignore[no-untyped-call]
    g_K = library.gradient_along(layer)
    assert g_K[0] == pytest.approx((loss(1e-2) - loss(-1e-2)).item() / 2e-2, rel=0.02, abs=1e-4)


def damaged(change: str) -> bytes:
    content = json.loads(a_library().to_bytes())
    match change:
        case "infinite":
            array = np.full((3, CHANNELS), np.inf, "<f2")

            content["directions"]["shift_C"]["float16"] = base64.b64encode(array.tobytes()).decode()
        case "other shape":
            content["starts"]["polyp"]["shift_C"]["shape"] = [1, CHANNELS]
        case "no clip":
            content["clip"] = 0
        case "stored identity":
            content["starts"][IDENTITY] = content["starts"]["polyp"]
        case "other counts":
            del content["directions"]["shift_C"]
        case "no JSON":
            return b"\x00"
        case "a list":
            content["shared"] = [1, 2]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "change",
    ["infinite", "other shape", "no clip", "stored identity", "other counts", "no JSON", "a list"],
)
def test_a_file_that_is_no_library_is_refused(change: str) -> None:
    with pytest.raises(BankError, match="not the file of a layer library"):
        LayerLibrary.from_bytes(damaged(change))


def test_a_library_for_another_form_does_not_fit() -> None:
    assert a_library("low_rank").fits(build_layer(form_spec("low_rank"), CHANNELS, 0))
    assert not a_library("low_rank").fits(build_layer(form_spec("scale_shift"), CHANNELS, 0))
    assert not a_library("low_rank").fits(build_layer(form_spec("low_rank", {"rank": 4}), CHANNELS, 0))


def test_all_holders_start_from_the_librarys_identity_so_that_their_layers_can_be_averaged() -> None:
    table = tiny_table(privacy={"method": "subspace", "library": random_library("low_rank")})
    table |= {"alignment": {"form": "low_rank"}, "alignments": {"histology": {"form": "scale_shift"}}}
    scenario = Scenario.model_validate(table)
    first = weights_of(first_layer(scenario, "polyp", CHANNELS, None, LIBRARIES.here))
    for name, value in a_library().start(IDENTITY).items():
        assert np.array_equal(first[name], value)
    other = first_layer(scenario, "histology", CHANNELS, None, LIBRARIES.here)
    assert weights_of(other).keys() == {"scale_C", "shift_C"}


def test_a_scenario_names_a_library_only_where_its_training_needs_one() -> None:
    assert library_named(Scenario.model_validate(tiny_table())) == ""
    scenario = Scenario.model_validate(
        tiny_table(privacy={"method": "subspace"}, alignment={"form": "low_rank", "rank": 3})
    )
    with pytest.raises(ScenarioError, match="casam scenarios library"):
        library_named(scenario)
    assert PrivacySpec(method="subspace", library="a" * 64).library == "a" * 64


def test_shipped_libraries_are_what_their_names_say_and_do_not_travel(tmp_path: Path) -> None:
    assert {file.stem for file in LIBRARIES.shipped.glob("*.json")} == set(SHIPPED_LIBRARIES.values())
    for (backbone, form, rank), digest in SHIPPED_LIBRARIES.items():
        assert LIBRARIES.travelling(digest, tmp_path) == []
        library = LIBRARIES.get(digest)
        assert (library.about["form"], library.about["rank"]) == (form, rank)
        assert library.fits(build_layer(form_spec(form, {"rank": rank}), 256, 0))
        assert library.flat_directions @ library.flat_directions.T == pytest.approx(np.eye(16), abs=0.01)
        spec = PrivacySpec(method="subspace").completed(BackboneSpec(name=backbone), LowRankSpec(rank=rank))
        assert spec.library == digest


def test_a_scenario_of_the_default_backbone_and_form_names_the_shipped_library() -> None:
    table = tiny_table(privacy={"method": "subspace"})
    scenario = Scenario.model_validate(table | {"backbone": {"name": "lite_medsam"}})
    assert library_named(scenario) in SHIPPED_LIBRARIES.values()
