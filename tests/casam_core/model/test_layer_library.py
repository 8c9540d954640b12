"""Public libraries of layers: their file, their starts, and files that are none."""

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
from casam_core.model.layer_library import IDENTITY, JOINT, LIBRARIES, LayerLibrary, library_named
from tests.banks import random_library, tiny_backbone
from tests.conftest import tiny_table

CHANNELS = tiny_backbone().geometry.channels


def a_library(form: str = "low_rank") -> LayerLibrary:
    return LIBRARIES.get(random_library(form), LIBRARIES.here)


@pytest.mark.parametrize("form", ["low_rank", "scale_shift"])
def test_the_identity_is_a_start_and_its_file_gives_the_same_library(form: str) -> None:
    library = a_library(form)
    layer = build_layer(form_spec(form), CHANNELS, 3)
    set_weights(layer, library.starts()[IDENTITY])
    z_BCHW = torch.randn(1, CHANNELS, 4, 4)
    assert torch.equal(layer(z_BCHW), z_BCHW)
    set_weights(layer, library.starts()[JOINT])
    assert not torch.equal(layer(z_BCHW), z_BCHW)
    assert LayerLibrary.from_bytes(library.to_bytes()).to_bytes() == library.to_bytes()


def test_rows_are_the_directions_over_the_weights_in_the_order_that_is_asked_for() -> None:
    library = a_library()
    one, other = library.rows(["up_CR", "shift_C"]), library.rows(["shift_C", "up_CR"])
    np.testing.assert_allclose(one @ one.T, np.eye(3), atol=2e-3)
    assert np.array_equal(one[:, -CHANNELS:], other[:, :CHANNELS])


def damaged(change: str) -> bytes:
    content = json.loads(a_library().to_bytes())
    match change:
        case "infinite":
            array = np.full((3, CHANNELS), np.inf, "<f2")
            content["directions"]["shift_C"]["float16"] = base64.b64encode(array.tobytes()).decode()
        case "other shape":
            content["joint"]["shift_C"]["shape"] = [1, CHANNELS]
        case "shares above 1":
            content["shares"][0] = 1.5
        case "a negative share":
            content["shares"][0] = -0.1
        case "a share that is no number":
            content["shares"][0] = None
        case "fewer shares":
            content["shares"].pop()
        case "a joint layer that is frozen SAM":
            for value in content["joint"].values():
                value["float16"] = base64.b64encode(bytes(2 * int(np.prod(value["shape"])))).decode()
        case "other weights":
            del content["directions"]["shift_C"]
        case "a weight twice":
            content["shared"]["shift_C"] = content["joint"]["shift_C"]
        case "long directions":
            for name, value in content["directions"].items():
                rows = 1000 * a_library().directions[name]
                value["float16"] = base64.b64encode(rows.astype("<f2").tobytes()).decode()
        case "of an earlier version":
            content["starts"] = {}
        case "no JSON":
            return b"\x00"
        case "a list":
            content["shared"] = [1, 2]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "change",
    [
        "infinite",
        "other shape",
        "shares above 1",
        "a negative share",
        "a share that is no number",
        "fewer shares",
        "a joint layer that is frozen SAM",
        "other weights",
        "a weight twice",
        "long directions",
        "of an earlier version",
        "no JSON",
        "a list",
    ],
)
def test_a_file_that_is_no_library_is_refused(change: str) -> None:
    with pytest.raises(BankError, match="not the file of a layer library"):
        LayerLibrary.from_bytes(damaged(change))


def test_a_library_for_another_form_does_not_fit() -> None:
    assert a_library("low_rank").fits(build_layer(form_spec("low_rank"), CHANNELS, 0))
    assert not a_library("low_rank").fits(build_layer(form_spec("scale_shift"), CHANNELS, 0))
    assert not a_library("low_rank").fits(build_layer(form_spec("low_rank", {"rank": 4}), CHANNELS, 0))


def test_all_holders_start_from_the_librarys_joint_layer_so_that_their_layers_can_be_averaged() -> None:
    table = tiny_table(privacy={"method": "public_start", "library": random_library("low_rank")})
    table |= {"alignment": {"form": "low_rank"}, "alignments": {"histology": {"form": "scale_shift"}}}
    scenario = Scenario.model_validate(table)
    first = weights_of(first_layer(scenario, "polyp", CHANNELS, None, LIBRARIES.here))
    for name, value in a_library().starts()[JOINT].items():
        assert np.array_equal(first[name], value)
    other = first_layer(scenario, "histology", CHANNELS, None, LIBRARIES.here)
    assert weights_of(other).keys() == {"scale_C", "shift_C"}


def test_a_scenario_names_a_library_only_where_its_training_needs_one() -> None:
    assert library_named(Scenario.model_validate(tiny_table())) == ""
    scenario = Scenario.model_validate(
        tiny_table(privacy={"method": "public_start"}, alignment={"form": "low_rank", "rank": 3})
    )
    with pytest.raises(ScenarioError, match="casam scenarios library"):
        library_named(scenario)
    assert PrivacySpec(method="public_start", library="a" * 64).library == "a" * 64


def test_shipped_libraries_are_what_their_names_say_and_do_not_travel(tmp_path: Path) -> None:
    assert {file.stem for file in LIBRARIES.shipped.glob("*.json")} == set(SHIPPED_LIBRARIES.values())
    for (backbone, form, rank), digest in SHIPPED_LIBRARIES.items():
        assert LIBRARIES.travelling(digest, tmp_path) == []
        library = LIBRARIES.get(digest)
        assert (library.about["form"], library.about["rank"]) == (form, rank)
        assert library.fits(build_layer(form_spec(form, {"rank": rank}), 256, 0))
        rows_KD = library.rows(sorted(library.joint))
        assert rows_KD @ rows_KD.T == pytest.approx(np.eye(len(rows_KD)), abs=0.01)
        spec = PrivacySpec(method="public_start").completed(
            BackboneSpec(name=backbone), LowRankSpec(rank=rank)
        )
        assert spec.library == digest


def test_a_scenario_of_the_default_backbone_and_form_names_the_shipped_library() -> None:
    table = tiny_table(privacy={"method": "public_start"})
    scenario = Scenario.model_validate(table | {"backbone": {"name": "lite_medsam"}})
    assert library_named(scenario) in SHIPPED_LIBRARIES.values()
