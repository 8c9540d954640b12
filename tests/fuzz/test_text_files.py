"""Scenarios, studies, policies: whatever is in the file, a person reads one line, and nothing is changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casam_core.config.library import LIBRARY, scenario_path
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.toml import apply_override, read_policy, read_scenario
from casam_core.errors import CasamError
from scenarios.study.study import read_study
from tests.fuzz.damage import contents, damaged, examples

STUDIES = Path(__file__).parents[2] / "scenarios" / "studies"
POLICY = b"""adapter = { noise = "dp", share = "yes" }
router.aggregation = "secagg"
metrics = "noisy"
budget = { epsilon = 3.0, epsilon_metrics = 1.0, delta = 1e-4, unit = "group" }
minimum_cohort = 3
joins_at = 1
leaves_at = 4
"""

SCENARIO_TEXTS = [path.read_bytes() for path in sorted(LIBRARY.rglob("*.toml"))]
STUDY_TEXTS = [path.read_bytes() for path in sorted(STUDIES.glob("*.toml"))]

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def check_line(error: CasamError) -> None:
    """A documented error has a text."""
    assert str(error).strip()


def read_or_refuse(read: Callable[[Path], object], data: bytes, suffix: str = ".toml") -> None:
    """The file is read, or refused in one documented error of one line; and it is as it was."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"file{suffix}"
        path.write_bytes(data)
        before = contents(Path(name))
        try:
            read(path)
        except CasamError as error:
            check_line(error)
        assert contents(Path(name)) == before


@given(st.sampled_from(SCENARIO_TEXTS).flatmap(damaged))
@examples(60, 1500)
def test_a_damaged_scenario(data: bytes) -> None:
    read_or_refuse(read_scenario, data)


@given(st.sampled_from(STUDY_TEXTS).flatmap(damaged))
@examples(40, 800)
def test_a_damaged_study(data: bytes) -> None:
    read_or_refuse(read_study, data)


@given(damaged(POLICY))
@examples(40, 800)
def test_a_damaged_policy(data: bytes) -> None:
    read_or_refuse(read_policy, data)


@given(st.binary(max_size=200))
@examples(20, 400)
def test_bytes_that_are_no_text_at_all(data: bytes) -> None:
    for read in (read_scenario, read_study, read_policy):
        read_or_refuse(read, data)


def paths_of(table: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a nested table."""
    if not isinstance(table, dict):
        return []
    return [p for key, value in table.items() for p in ((*path, key), *paths_of(value, (*path, key)))]


WHOLE: dict[str, Any] = json.loads(read_scenario(scenario_path("quickstart")).model_dump_json())
KEYS = paths_of(WHOLE)


@given(st.sampled_from(KEYS), JSON_VALUES)
@examples(80, 1500)
def test_any_value_under_any_key_of_a_scenario(path: tuple[str, ...], value: Any) -> None:
    """What is accepted is a scenario: it has a spelling and a digest, and reads itself back."""
    table = json.loads(json.dumps(WHOLE))
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    try:
        text = json.dumps(table)
    except ValueError:
        return

    def read(file: Path) -> None:
        scenario = read_scenario(file)
        again = Scenario.model_validate_json(scenario.canonical_json())
        assert again.digest() == scenario.digest()

    read_or_refuse(read, text.encode(errors="replace"), ".json")


@given(
    st.text(max_size=40)
    | st.sampled_from(KEYS).map(".".join).flatmap(lambda k: st.text(max_size=12).map(lambda v: f"{k}={v}"))
)
@examples(60, 800)
def test_any_text_behind_set(override: str) -> None:
    try:
        apply_override(json.loads(json.dumps(WHOLE)), override)
    except CasamError as error:
        check_line(error)


@given(st.dictionaries(st.sampled_from(list(Policy.model_fields)), JSON_VALUES, max_size=4))
@examples(40, 800)
def test_any_value_in_a_policy(table: dict[str, Any]) -> None:
    try:
        text = json.dumps(table)
    except ValueError:
        return
    read_or_refuse(read_policy, text.encode(errors="replace"), ".json")


def test_the_property_can_fail() -> None:
    def careless(path: Path) -> None:
        json.loads(path.read_text())

    with pytest.raises(ValueError, match="Expecting"):
        read_or_refuse(careless, b"no json")
    with pytest.raises(AssertionError):
        read_or_refuse(lambda path: path.write_text("changed"), b"x = 1")
