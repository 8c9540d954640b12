"""A study's file: what its grid is, what is refused, and that every shipped one resolves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from casam_core.config.library import library_names, resolve_scenario
from casam_core.errors import CasamError, ScenarioError, StudyError
from scenarios.study.study import Plan, chosen, flat, plan_study, study_names, study_path
from tests.conftest import tiny_table


def study_file(folder: Path, **changes: Any) -> Path:
    """A study of the tiny scenario beside it: two policies, two ranks, two seeds."""
    (folder / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    table: dict[str, Any] = {
        "name": "small",
        "scenario": "tiny.toml",
        "seeds": [0, 1],
        "set": {"training": {"epochs": 2}},
        "axes": {"alignment.rank": [1, 8]},
        "variants": {
            "policy": {
                "open": {},
                "closed": {"set": {"institutions.*.policy": {"adapter": {"share": "never"}}}},
            }
        },
        "comparisons": [{"axis": "policy", "baseline": "open"}],
    }
    path = folder / "small.toml"
    path.write_text(tomli_w.dumps(table | changes))
    return path


def planned(path: Path, **options: Any) -> Plan:
    return plan_study(path, **{"with_data": False} | options)


def test_every_combination_is_a_cell_with_seeds_last(tmp_path: Path) -> None:
    cells = planned(study_file(tmp_path)).cells
    assert [cell.name for cell in cells] == [
        "open_1_seed-0", "open_1_seed-1", "open_8_seed-0", "open_8_seed-1",
        "closed_1_seed-0", "closed_1_seed-1", "closed_8_seed-0", "closed_8_seed-1",
    ]  # fmt: skip
    last = cells[-1]
    assert last.labels == {"policy": "closed", "alignment.rank": "8"}
    assert (last.scenario.seed, last.scenario.alignment.rank, last.scenario.training.epochs) == (1, 8, 2)
    assert {site.policy.adapter.share for site in last.scenario.institutions} == {"never"}
    assert {site.policy.adapter.share for site in cells[0].scenario.institutions} == {"yes"}
    assert len({cell.scenario.digest() for cell in cells}) == 8


def test_a_part_of_a_study_is_chosen_by_labels(tmp_path: Path) -> None:
    plan = planned(study_file(tmp_path))
    assert chosen(plan, ()) == plan.cells
    part = chosen(plan, ["policy=closed", "alignment.rank=8"])
    assert [cell.name for cell in part] == ["closed_8_seed-0", "closed_8_seed-1"]
    assert (
        chosen(plan, ["policy=open,closed"]) == chosen(plan, ["policy=open", "policy=closed"]) == plan.cells
    )


@pytest.mark.parametrize("item", ["policy", "rank=8", "policy=shut", "policy=open,", "=open"])
def test_a_part_that_the_study_does_not_have_is_refused(tmp_path: Path, item: str) -> None:
    with pytest.raises(StudyError, match="--only"):
        chosen(planned(study_file(tmp_path)), [item])


def test_what_is_set_on_the_command_line_comes_last(tmp_path: Path) -> None:
    cells = planned(study_file(tmp_path), overrides=["training.epochs=5"], seeds=[7]).cells
    assert {(cell.seed, cell.scenario.training.epochs) for cell in cells} == {(7, 5)}
    assert len(cells) == 4


def test_a_variant_may_have_a_base_of_its_own_and_is_left_out_without_its_data(tmp_path: Path) -> None:
    data = {"phantoms": {}, "real": {"scenario": "real.toml", "needs_data": True}}
    path = study_file(tmp_path, variants={"data": data}, comparisons=[])
    real = tiny_table(name="real", institutions=[{"name": "lab", "data": {"polyp": {"path": "polyps"}}}])
    (tmp_path / "real.toml").write_text(tomli_w.dumps(real | {"stream": ["polyp"]}))
    without, with_data = planned(path), planned(path, with_data=True)
    assert without.left_out == ("data=real",)
    assert {cell.scenario.name for cell in without.cells} == {"tiny"}
    assert with_data.left_out == ()
    assert [cell.scenario.name for cell in with_data.cells] == ["tiny"] * 4 + ["real"] * 4


def test_tables_and_keys_with_dots_are_the_same() -> None:
    nested = dict(flat({"a": {"b": {"c": 1}, "d": [2]}, "e.f": 3}))
    assert nested == {"a.b.c": 1, "a.d": [2], "e.f": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axis": 1}, "unknown key 'axis'; docs/studies.md lists all keys"),
        ({"scenario": "nowhere"}, "scenario 'nowhere'"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"seeds": []}, "seeds"),
        ({"tune": [1, 1]}, "tune: expected different factors"),
        (
            {"comparisons": [{"axis": "policy", "baseline": label} for label in ("open", "closed")]},
            "axis 'policy' stands twice; give it one baseline",
        ),
        ({"axes": {"alignment.rank": 3}}, "axes.alignment.rank: expected a list"),
        ({"axes": {"alignment.rank": [1, 1]}}, "two values have the label '1'"),
        ({"axes": {"alignment.rank": [0]}}, "cell open_0_seed-0: alignment.rank"),
        ({"axes": {"alignment.ranks": [1]}}, "unknown key 'alignment.ranks'"),
        ({"axes": {"seed": [1]}}, "seeds"),
        ({"comparisons": [{"axis": "colour", "baseline": "red"}]}, "expected one of policy, alignment.rank"),
        ({"comparisons": [{"axis": "policy", "baseline": "shut"}]}, "expected one of open, closed"),
        ({"variants": {"data": {"real": {"needs_data": True}}}, "comparisons": []}, "give --data-root"),
        ({"axes": {"stream": [["polyp"], ["liver"]]}}, "task 'liver' of the stream"),
        (
            {"variants": {"policy": {"open": {}, "a+b": {}, "a-b": {}}}},
            "two cells would have the name 'a-b_1_s",
        ),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((StudyError, ScenarioError)) as refusal:
        planned(study_file(tmp_path, **changes))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unknown_study_lists_the_library() -> None:
    with pytest.raises(StudyError, match=r"expected a \.toml file or one of .*privacy-utility"):
        study_path("privacy-utilty")


@pytest.mark.parametrize("name", study_names())
@pytest.mark.parametrize("with_data", [False, True])
def test_every_study_of_the_library_resolves_and_says_what_it_is(name: str, with_data: bool) -> None:
    plan = planned(study_path(name), with_data=with_data)
    assert plan.study.name == name
    assert plan.study.description
    assert plan.study.look_at
    assert plan.study.minutes
    assert plan.study.comparisons
    assert plan.cells


@pytest.mark.parametrize("name", library_names())
def test_every_scenario_of_the_library_says_what_to_look_at(name: str) -> None:
    assert resolve_scenario(name).look_at


def test_the_privacy_study_compares_what_its_summary_answers() -> None:
    plan = planned(study_path("privacy-utility"), with_data=True)
    labels = plan.study.labels()
    assert labels == {
        "data": ["phantoms", "nuclei"],
        "policy": ["open", "dp-8", "dp-3", "dp-1", "public-8", "public-3", "public-1", "never-share"],
    }
    for cell in plan.cells:
        budgets = {site.policy.budget.epsilon for site in cell.scenario.institutions}
        way, _, epsilon = cell.labels["policy"].partition("-")
        assert budgets == ({float(epsilon)} if epsilon.isdecimal() else {None})
        assert cell.scenario.privacy.method == ("public_start" if way == "public" else "dp_sgd")


def test_faults_are_casams_own(tmp_path: Path) -> None:
    with pytest.raises(CasamError, match="no such study file"):
        planned(tmp_path / "none.toml")
