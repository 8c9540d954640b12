"""Scenarios: what is read, what is refused and how, what `--set` does, and the one canonical spelling."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from casam_core.config.named_parts import SHIPPED_FRAMES, AlignmentSpec, RouterSpec
from casam_core.config.participation import AdmissionSpec
from casam_core.config.scenario import Scenario, TrainingSpec
from casam_core.config.toml import apply_override, parse_scenario, read_scenario, set_key
from casam_core.errors import ScenarioError
from casam_core.model.forms import FORMS, FormEntry, LowRankSpec
from casam_core.routing.routers import ROUTERS, PublicFrameSpec, RouterEntry, VaeSpec
from casam_core.routing.routers.nearest_mean import NearestMeanRouter

TEXT = """
name = "small"
stream = ["polyp", "heart"]

[[institutions]]
name = "north"
data.polyp = { reader = "phantom", phantom = "polyp" }

[[institutions]]
name = "west"
data.heart = { reader = "folder", path = "hearts" }
data.polyp = { reader = "phantom", phantom = "polyp", images = 12 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small scenario file."""
    file = tmp_path / "small.toml"
    file.write_text(TEXT)
    return file


def table(**changes: Any) -> dict[str, Any]:
    phantom = {"reader": "phantom", "phantom": "polyp"}
    return {
        "name": "small",
        "stream": ["polyp"],
        "institutions": [{"name": "north", "data": {"polyp": phantom}}],
    } | changes


def refusal_of(**changes: Any) -> str:
    with pytest.raises(ScenarioError) as refusal:
        parse_scenario(table(**changes), "file.toml")
    text = str(refusal.value)
    assert text.startswith("file.toml: ")
    assert "\n" not in text
    return text


# --- Reading ---------------------------------------------------------------------------------------


def test_a_scenario_is_read_with_defaults_for_what_it_leaves_out(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.stream == ["polyp", "heart"]
    assert scenario.seed == 0
    assert scenario.backbone.name == "lite_medsam"
    assert scenario.alignment == LowRankSpec(rank=8)
    assert scenario.router.percentile == 97.0
    assert isinstance(scenario.router, PublicFrameSpec)
    assert scenario.router.frame == SHIPPED_FRAMES["lite_medsam", "moments"]
    assert VaeSpec().beta == 16.5
    assert scenario.compute.threads == 1


def test_holders_stand_in_the_scenarios_order(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.holders("polyp") == ["north", "west"]
    assert scenario.holders("heart") == ["west"]
    assert scenario.holders("spleen") == []
    assert scenario.institution("west").data["polyp"].images == 12
    with pytest.raises(KeyError):
        scenario.institution("south")


def test_a_scenario_cannot_be_changed_after_it_was_read(path: Path) -> None:
    scenario = read_scenario(path)
    with pytest.raises(ValueError, match="frozen"):
        scenario.seed = 5  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        scenario.training.epochs = 5  # type: ignore[misc]


def test_a_missing_file_a_folder_and_broken_toml_are_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.toml: no such scenario file"):
        read_scenario(tmp_path / "nowhere.toml")
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_scenario(tmp_path)
    broken = tmp_path / "broken.toml"
    for data in (b"name = ", b"\xff\xfe", b"a = 1\na = 2"):
        broken.write_bytes(data)
        with pytest.raises(ScenarioError, match=r"broken\.toml: not valid TOML"):
            read_scenario(broken)


# --- Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, ["unknown key 'colour'", "docs/scenario.md"]),
        ({"training": {"epoch": 3}}, ["unknown key 'training.epoch'"]),
        ({"training": {"epochs": 0}}, ["training.epochs", "greater than or equal to 1", "found 0"]),
        ({"training": {"prompts": "scribble"}}, ["training.prompts", "'mixed'", "found 'scribble'"]),
        ({"router": {"percentile": 101}}, ["router.percentile", "found 101"]),
        ({"router": {"kind": "gaussian", "shrinkage": "much"}}, ["router.shrinkage", "found 'much'"]),
        (
            {"router": {"beta": 2}},
            ["router.beta: belongs to kind vae, found kind 'public_frame'; leave it out"],
        ),
        ({"router": {"kind": "vae", "threshold": 0}}, ["router.threshold: belongs to kind public_frame"]),
        ({"router": {"frame": "feed"}}, ["router.frame", "found 'feed'"]),
        ({"router": {"threshold": "tight"}}, ["router.threshold", "found 'tight'"]),
        ({"router": {"kind": "vae", "directions": 8}}, ["router.directions: belongs to kind gaussian"]),
        (
            {"router": {"kind": "knn"}},
            ["router.kind: expected one of gaussian, nearest_mean, public_frame", "'knn'"],
        ),
        ({"router": {"kind": ["vae"]}}, ["router.kind: expected one of gaussian"]),
        ({"router": {"kind": "vae", "shade": 8}}, ["unknown key 'router.shade'"]),
        ({"router": "vae"}, ["router: expected a table, found 'vae'"]),
        (
            {"alignment": {"form": "residual", "rank": 4}},
            ["alignment.rank: belongs to form low_rank or low_rank_decoder or lora"],
        ),
        ({"alignment": {"rank": 0}}, ["alignment.rank", "greater than or equal to 1"]),
        (
            {"alignments": {"polyp": {"form": "casam", "rank": 4}}},
            [
                "alignments.polyp.rank: belongs to form low_rank or low_rank_decoder or lora",
                "found form 'casam'",
            ],
        ),
        ({"backbone": {"name": "vit_x"}}, ["backbone.name", "'lite_medsam'", "found 'vit_x'"]),
        ({"compute": {"device": "tpu"}}, ["compute.device", "found 'tpu'"]),
        ({"seed": -1}, ["seed", "found -1"]),
        ({"name": "Two Words"}, ["name", "found 'Two Words'"]),
        ({"name": "../up"}, ["name", "found '../up'"]),
        ({"stream": []}, ["stream", "at least 1"]),
        ({"stream": ["polyp", "spleen"]}, ["'spleen'", "held by no institution", "held: polyp"]),
        ({"stream": ["polyp", "polyp"]}, ["'polyp'", "stands twice"]),
        ({"institutions": []}, ["institutions", "at least 1"]),
        ({"training": 5}, ["training", "found 5"]),
        (
            {"institutions": [{"name": "a", "unseen": True, "data": {"polyp": {"path": "p"}}}]},
            ["institution 'a' is unseen", "task 'polyp' stands in the stream"],
        ),
    ],
)
def test_a_fault_names_the_key_what_was_found_and_what_was_expected(
    changes: dict[str, Any], words: list[str]
) -> None:
    text = refusal_of(**changes)
    assert [word for word in words if word not in text] == []


def test_a_router_and_a_form_that_are_registered_from_outside_bring_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NeighboursSpec(RouterSpec):
        neighbours: int = Field(5, ge=1)

    class MixedSpec(AlignmentSpec):
        depth: int = 2

    monkeypatch.setitem(ROUTERS, "knn", RouterEntry(build=NearestMeanRouter, section=NeighboursSpec))
    monkeypatch.setitem(FORMS, "mixed", FormEntry(FORMS["residual"].build, 1e-3, section=MixedSpec))
    scenario = Scenario.model_validate(
        table(router={"kind": "knn", "neighbours": 3}, alignment={"form": "mixed", "depth": 4})
    )
    content = scenario.model_dump(mode="json")
    assert content["router"]["neighbours"] == 3
    assert content["alignment"] == {
        "form": "mixed",
        "learning_rate": None,
        "start": "identity",
        "depth": 4,
    }
    assert Scenario.model_validate_json(scenario.canonical_json()) == scenario
    assert "router.neighbours: belongs to kind knn" in refusal_of(router={"kind": "vae", "neighbours": 3})
    schema = Scenario.model_json_schema()
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"router": {"kind": "vae", "neighbours": 3}}, schema)


def test_the_old_name_of_the_fallback_is_accepted_and_named() -> None:
    with pytest.warns(FutureWarning, match=r"training.floor is now called training.fallback_to_identity"):
        scenario = Scenario.model_validate(table(training={"floor": False}))
    assert not scenario.training.fallback_to_identity
    assert '"floor"' not in scenario.canonical_json()


def test_the_private_method_of_before_is_refused_with_the_one_that_took_its_place() -> None:
    for old in ({"method": "subspace"}, {"descent_steps": 4}):
        assert 'set privacy.method = "public_start"' in refusal_of(privacy=old)
    resolved = {"method": "dp_sgd", "descent_steps": None}  # as earlier versions wrote every scenario
    assert '"descent_steps":null' in Scenario.model_validate(table(privacy=resolved)).canonical_json()


def test_a_learning_rate_that_no_step_would_use_is_refused() -> None:
    assert "privacy.learning_rate: expected none" in refusal_of(
        privacy={"method": "public_start", "learning_rate": 0.01}
    )


def test_a_missing_key_is_named() -> None:
    incomplete = table()
    del incomplete["stream"]
    with pytest.raises(ScenarioError, match=r"file\.toml: key 'stream' is missing$"):
        parse_scenario(incomplete, "file.toml")


def test_more_faults_are_counted() -> None:
    assert "(and 2 more)" in refusal_of(seed=-1, colour=1, training={"epochs": 0})


@pytest.mark.parametrize("key", ["norm_factor", "canary_share"])
def test_a_check_of_admission_is_off_with_the_word_of_its_meaning(path: Path, key: str) -> None:
    """TOML has no null; a scenario in JSON has."""
    meaning = AdmissionSpec.model_fields[key].description or ""
    assert "null (in JSON): no" in meaning
    table = json.loads(read_scenario(path).canonical_json()) | {"admission": {key: None}}
    path.with_suffix(".json").write_text(json.dumps(table))
    assert getattr(read_scenario(path.with_suffix(".json")).admission, key) is None


def test_two_institutions_of_one_name_are_refused() -> None:
    twice = table()["institutions"] * 2
    assert "two institutions are named 'north'" in refusal_of(institutions=twice)


def test_no_task_can_take_the_name_of_the_identity_route() -> None:
    data = {"identity": {"reader": "phantom", "phantom": "polyp"}}
    sites = [*table()["institutions"], {"name": "west", "data": data}]
    assert "no task can be named 'identity'" in refusal_of(institutions=sites)


def test_a_reader_without_its_source_is_refused_where_it_stands() -> None:
    sites = [{"name": "north", "data": {"polyp": {"reader": "coco"}}}]
    text = refusal_of(institutions=sites)
    assert "institutions.north.data.polyp: reader 'coco' needs the key 'path'" in text


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_splits_that_leave_nothing_to_train_are_refused(val: float, test: float) -> None:
    data = {"reader": "phantom", "phantom": "polyp", "split": {"val": val, "test": test}}
    text = refusal_of(institutions=[{"name": "north", "data": {"polyp": data}}])
    assert "val + test must be below 1" in text
    assert "institutions.north.data.polyp.split" in text


# --- Overrides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=5", "seed", 5),
        ("training.epochs=3", "training.epochs", 3),
        ("training.max_steps = 7", "training.max_steps", 7),
        ("router.threshold=0.5", "router.threshold", 0.5),
        ("evaluation.hd95=true", "evaluation.hd95", True),
        ('backbone.name="tiny"', "backbone.name", "tiny"),
        ("backbone.name=tiny", "backbone.name", "tiny"),  # what is no TOML value is text
        ("description=a = b", "description", "a = b"),
    ],
)
def test_an_override_sets_one_key(path: Path, override: str, key: str, value: object) -> None:
    found: Any = read_scenario(path, [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_an_override_reaches_into_lists_and_makes_tables_on_its_way(path: Path) -> None:
    overrides = [
        "institutions.1.data.polyp.images=20",
        "institutions.0.data.polyp.limit.test=4",
        "stream.1=polyp2",
    ]
    with pytest.raises(ScenarioError, match="polyp2"):
        read_scenario(path, overrides)
    scenario = read_scenario(path, overrides[:2])
    assert scenario.institution("west").data["polyp"].images == 20
    assert scenario.institution("north").data["polyp"].limit.test == 4


def test_an_override_names_an_institution_or_all_of_them(path: Path) -> None:
    named = read_scenario(path, ["institutions.west.data.polyp.images=20"])
    assert named.institution("west").data["polyp"].images == 20
    assert named.institution("north").data["polyp"].images == 40
    everyone = read_scenario(path, ["institutions.*.policy.metrics=never", "institutions.*.data.*.size=64"])
    assert [site.policy.metrics for site in everyone.institutions] == ["never", "never"]
    assert {spec.size for site in everyone.institutions for spec in site.data.values()} == {64}


def test_what_an_override_sets_everywhere_is_not_one_shared_table() -> None:
    changed = table(institutions=[{"name": "a"}, {"name": "b"}])
    set_key(changed, "institutions.*.policy", {"metrics": "never"}, "here")
    set_key(changed, "institutions.a.policy.metrics", "exact", "here")
    assert [site["policy"]["metrics"] for site in changed["institutions"]] == ["exact", "never"]


def test_the_last_override_wins(path: Path) -> None:
    assert read_scenario(path, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "", "=3", "  =3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ScenarioError, match="expected KEY=VALUE, found"):
        apply_override({}, override)


@pytest.mark.parametrize(
    "override",
    [
        "institutions.9.name=x",
        "institutions.south.name=x",
        "stream.polyp=x",
        "name.first=x",
        "name.a.b=x",
        "stream.5=x",
        "stream.-1=x",
    ],
)
def test_an_override_that_leads_nowhere_is_refused_and_changes_nothing(override: str) -> None:
    given_table = table()
    before = copy.deepcopy(given_table)
    with pytest.raises(ScenarioError) as refusal:
        apply_override(given_table, override)
    assert f"--set {override}" in str(refusal.value)
    assert given_table == before


def test_a_mistyped_key_is_named_before_the_key_that_it_leaves_missing(path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"unknown key 'alignment\.rnk'.*did you mean 'rank'\?"):
        read_scenario(path, ["alignment.rnk=3"])
    with pytest.raises(ScenarioError, match=r"unknown key 'strem'.*did you mean 'stream'\? \(and 1 more\)"):
        parse_scenario({("strem" if key == "stream" else key): value for key, value in table().items()}, "x")
    with pytest.raises(ScenarioError, match=r"unknown key 'epochs'; docs/scenario\.md lists all keys$"):
        read_scenario(path, ["epochs=3"])  # a key of `training`: the same word is no hint


def test_names_in_a_message_keep_to_one_line() -> None:
    wicked = table()
    wicked["institutions"][0]["name"] = "\x1b[2Jfoo\nerror: all is well"
    with pytest.raises(ScenarioError, match=r"institutions\.\?\[2Jfoo\?error: all is well\.name") as fault:
        parse_scenario(wicked, "x")
    with pytest.raises(ScenarioError, match=r"expected one of \?\[2Jfoo\?error") as other:
        apply_override(wicked, "institutions.foo.name=x")
    assert all(str(told.value).isprintable() for told in (fault, other))


def test_a_mistyped_institution_is_answered_with_the_names() -> None:
    with pytest.raises(ScenarioError, match=r"expected one of north.*found 'nort'; did you mean 'north'\?"):
        apply_override(table(), "institutions.nort.name=x")


def test_an_override_is_checked_like_the_file(path: Path) -> None:
    with pytest.raises(
        ScenarioError, match=r"small\.toml --set training\.epochs=many: training\.epochs.*found 'many'"
    ):
        read_scenario(path, ["training.epochs=many"])
    with pytest.raises(ScenarioError, match=r"unknown key 'trainings'.*did you mean 'training'\?"):
        read_scenario(path, ["trainings.epochs=1"])


@settings(max_examples=200)
@given(st.text(st.sampled_from("stream.institutions01²=[]{}\"' \n#abc"), max_size=30))
@example("institutions.²=1")  # a digit, but no number
def test_no_override_ends_in_anything_but_a_scenario_error(override: str) -> None:
    changed = table()
    try:
        apply_override(changed, override)
        parse_scenario(changed, "file.toml")
    except ScenarioError:
        pass


# --- The canonical spelling ------------------------------------------------------------------------


def test_the_canonical_json_is_read_back_as_the_same_scenario(path: Path) -> None:
    scenario = read_scenario(path)
    again = Scenario.model_validate_json(scenario.canonical_json())
    assert again == scenario
    assert again.canonical_json() == scenario.canonical_json()
    assert again.digest() == scenario.digest()


def test_the_spelling_of_the_file_does_not_change_the_digest() -> None:
    plain = parse_scenario(table(), "a")
    spelled = parse_scenario(dict(reversed(table(seed=0, training={"instances": 4}).items())), "b")
    assert plain.digest() == spelled.digest()
    assert json.loads(plain.canonical_json())["training"]["instances"] == 4


def test_the_order_in_which_an_institution_lists_its_tasks_does_not_change_the_digest() -> None:
    data = {task: {"reader": "phantom", "phantom": "polyp"} for task in ("polyp", "heart")}
    digests = {
        parse_scenario(table(institutions=[{"name": "north", "data": listed}]), "a").digest()
        for listed in (data, dict(reversed(data.items())))
    }
    assert len(digests) == 1


def test_what_a_list_of_scenarios_says_does_not_change_the_digest() -> None:
    plain = parse_scenario(table(), "a")
    told = parse_scenario(table(minutes=3.5, look_at="the matrix"), "b")
    assert (told.minutes, told.look_at) == (3.5, "the matrix")
    assert told.digest() == plain.digest()


def test_copies_are_institutions_of_their_own_and_the_same_scenario_as_when_written_out() -> None:
    data = {"polyp": {"reader": "phantom", "phantom": "polyp"}}
    short = parse_scenario(table(institutions=[{"name": "clinic", "data": data, "copies": 12}]), "a")
    names = [f"clinic-{number:02}" for number in range(1, 13)]
    assert [site.name for site in short.institutions] == names
    written = table(institutions=[{"name": name, "data": data} for name in names])
    assert parse_scenario(written, "b").digest() == short.digest()
    assert Scenario.model_validate_json(short.canonical_json()) == short


def test_copies_need_room_in_the_name() -> None:
    data = {"polyp": {"reader": "phantom", "phantom": "polyp"}}
    site = {"name": "c" * 47, "data": data, "copies": 2}
    assert "shorter name" in refusal_of(institutions=[site])


def test_every_setting_changes_the_digest() -> None:
    digests = {
        parse_scenario(table(**change), "a").digest()
        for change in (
            {},
            {"seed": 1},
            {"router": {"kind": "vae"}},
            {"compute": {"threads": 2}},
            {"name": "b"},
        )
    }
    assert len(digests) == 5


def test_patience_without_a_best_epoch_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"patience needs keep_best = true; set it, or leave"):
        TrainingSpec(patience=2, keep_best=False)
    assert TrainingSpec(patience=2).keep_best


def test_the_official_objective_needs_all_cells() -> None:
    with pytest.raises(ValidationError, match='compares whole masks; set far_cells = "all"'):
        TrainingSpec(objective="official")
    assert TrainingSpec(objective="official", far_cells="all").objective == "official"
