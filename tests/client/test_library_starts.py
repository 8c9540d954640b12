"""Training without noise may start from a layer of a public library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from casam_core.config.scenario import Scenario
from casam_core.model.forms import AlignmentLayer, build_layer, form_spec, weights_of
from casam_core.model.layer_library import IDENTITY, LIBRARIES, library_named
from casam_core.model.validation import Validated, take_best
from tests.banks import random_library, tiny_backbone
from tests.client.test_institution import institution
from tests.conftest import tiny_table


def test_the_start_with_the_best_validation_is_taken_and_of_equal_ones_the_first() -> None:
    library = LIBRARIES.get(random_library("scale_shift"), LIBRARIES.here)
    starts = [*library.starts().values(), library.starts()[IDENTITY]]
    for iou, best in (([0.5, 0.7, 0.6], 1), ([0.5, 0.5, 0.4], 0)):
        layer, asked = build_layer(form_spec("scale_shift"), tiny_backbone().geometry.channels, 0), iter(iou)

        def validate(layer: AlignmentLayer) -> Validated:
            return Validated(np.array([next(asked)]), np.zeros(1))  # noqa: B023

        take_best(layer, starts, validate)
        for name, value in weights_of(layer).items():
            np.testing.assert_array_equal(value, starts[best][name])


def test_an_institution_has_the_starts_of_the_library_and_otherwise_its_first_layer(tmp_path: Path) -> None:
    digest = random_library("low_rank")
    privacy, low_rank = {"library": digest}, {"form": "low_rank", "start": "library"}
    site = institution("north", tmp_path / "a", alignment=low_rank, privacy=privacy)
    starts = LIBRARIES.get(digest, LIBRARIES.here).starts()
    assert len(site.starts("polyp", site.layer("polyp", None))) == len(starts) == 2
    other = institution("north", tmp_path / "b")
    (start,) = other.starts("polyp", other.layer("polyp", None))
    for name, value in weights_of(other.layer("polyp", None)).items():
        np.testing.assert_array_equal(start[name], value)


def test_a_scenario_names_the_library_that_casam_ships_only_if_it_starts_from_one() -> None:
    table = tiny_table(backbone={"name": "lite_medsam"})
    assert library_named(Scenario.model_validate(table)) == ""
    assert library_named(Scenario.model_validate(table | {"alignment": {"start": "library"}}))


def test_a_task_cannot_start_from_a_library_that_the_scenario_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"alignments\.polyp\.start: expected identity"):
        Scenario.model_validate(tiny_table(alignments={"polyp": {"start": "library"}}))
