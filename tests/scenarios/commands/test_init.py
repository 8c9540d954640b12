"""`casam init` and `casam schema`: what is written is accepted, what is there is left alone."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import typer

from casam_core.config.data_spec import LimitSpec
from casam_core.config.library import LIBRARY
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_policy, read_scenario
from scenarios.commands.scenario_commands import Kind, schema_of
from scenarios.engines.preflight import preflight
from scenarios.export.schema_pages import policy_text
from scenarios.study.study import STUDIES
from tests.casam_command import Casam
from tests.conftest import tiny_table
from tests.scenarios.commands.test_cli import dataset

SITES = ("--site", "heart-centre:cardiac=phantom:cardiac_mr", "--site", "lab:cells=phantom:histology")


def test_what_is_written_passes_the_checks_of_a_run(tmp_path: Path, casam: Casam) -> None:
    dataset(tmp_path / "data" / "squares")
    result = casam(
        "init", "mine.toml", *SITES, "--site", "lab:squares=squares", "--unseen", "far:polyp=phantom:polyp",
        "--seed", "3", "--epochs", "2", "--description", 'He said "no"', "--policy", "site.toml",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "casam run mine.toml --data-root FOLDER" in result.out
    scenario = read_scenario(tmp_path / "mine.toml", ["backbone.name=tiny"])
    assert scenario.stream == ["cardiac", "cells", "squares"]
    assert (scenario.name, scenario.seed, scenario.training.epochs) == ("mine", 3, 2)
    assert scenario.description == 'He said "no"'
    assert [site.name for site in scenario.institutions] == ["heart-centre", "lab", "far"]
    assert scenario.institution("far").unseen
    assert preflight(scenario, tmp_path / "data").steps > 0
    assert read_policy(tmp_path / "site.toml") == Policy()


def test_two_sources_of_one_task_are_refused_before_a_file_is_written(tmp_path: Path, casam: Casam) -> None:
    result = casam("init", "mine.toml", *SITES, "--site", "lab:cells=phantom:polyp")
    assert "found several for lab:cells" in result.refusal
    assert not (tmp_path / "mine.toml").exists()


def test_the_next_command_can_be_pasted_where_the_folders_are(tmp_path: Path, casam: Casam) -> None:
    dataset(tmp_path / "squares")
    result = casam("init", "my file.toml", "--site", "lab:squares=squares")
    assert "casam data check --scenario 'my file.toml' --data-root ." in result.out
    result = casam("init", "far.toml", "--site", "lab:squares=elsewhere")
    assert "elsewhere: no such folder on this machine" in result.out
    assert "--data-root FOLDER" in result.out


def test_a_run_uses_all_images_of_a_folder(tmp_path: Path, casam: Casam) -> None:
    dataset(tmp_path / "squares", images=60)
    assert casam("init", "mine.toml", "--site", "lab:squares=squares").status == 0
    scenario = read_scenario(tmp_path / "mine.toml", ["backbone.name=tiny"])
    (data,) = scenario.institution("lab").data.values()
    assert data.limit == LimitSpec()


def test_a_phantom_scenario_needs_no_data_root_and_runs(tmp_path: Path, casam: Casam) -> None:
    assert casam("init", "mine.toml", *SITES, "--epochs", "1").status == 0
    assert "--data-root" not in (tmp_path / "mine.toml").read_text()
    small = (
        "institutions.*.data.*.images=12",
        "institutions.*.data.*.size=64",
        "training.fallback_to_identity=false",
    )
    options = [word for change in ("backbone.name=tiny", *small) for word in ("--set", change)]
    result = casam("run", "mine.toml", *options, "--engine", "inprocess", "--out", "out")
    assert result.status == 0, result.err


def test_the_scenario_explains_itself(tmp_path: Path, casam: Casam) -> None:
    casam("init", "mine.toml", *SITES)
    text = (tmp_path / "mine.toml").read_text()
    for word in ("# Run it with: casam run", "docs/scenario.md", "casam schema", "--set"):
        assert word in text


@pytest.mark.parametrize("taken", ["mine.toml", "site.toml"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, casam: Casam, taken: str) -> None:
    (tmp_path / taken).write_text("years of work")
    result = casam("init", "mine.toml", *SITES, "--policy", "site.toml")
    assert f"{taken} exists already" in result.refusal
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--site", "Lab:x=phantom:polyp"], "expected INSTITUTION:TASK=SOURCE"),
        (["--site", "lab:x=phantom:liver"], "no phantom is called 'liver'"),
        (["--site", "lab:identity=phantom:polyp"], "no task can be named 'identity'"),
        (["--site", "lab:x=phantom:polyp", "--unseen", "far:x=phantom:polyp"], "stands in the stream"),
        (["--site", "lab:x=phantom:polyp", "--name", "Two Words"], "name"),
        ([], "a terminal for questions"),
    ],
)
def test_a_wrong_wish_writes_nothing(tmp_path: Path, casam: Casam, arguments: list[str], words: str) -> None:
    assert words in casam("init", "mine.toml", *arguments).refusal
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path, casam: Casam) -> None:
    assert "expected the folder no to exist" in casam("init", "no/where.toml", *SITES).refusal


def test_questions_on_a_terminal_lead_to_the_same_scenario(
    tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["heart-centre", "Cardiac", "phantom:cardiac_mr"]  # and is asked again
    right = ["heart-centre", "cardiac", "phantom:cardiac_mr", True, "lab", "cells", "phantom:histology"]
    answers = iter([*wrong, *right, False, False, "about it"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", lambda *args, **kwargs: next(answers))
    monkeypatch.setattr(typer, "confirm", lambda *args, **kwargs: next(answers))
    assert casam("init", "asked.toml").status == 0
    assert next(answers, "none left") == "none left"
    assert casam("init", "flags.toml", *SITES, "--name", "asked", "--description", "about it").status == 0
    assert (tmp_path / "asked.toml").read_text() == (tmp_path / "flags.toml").read_text()


def test_a_question_without_an_answer_ends_in_one_line(
    tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    ended = casam("init", "asked.toml")
    assert (ended.status, ended.err) == (1, "error: a question had no answer; nothing was done\n")
    assert list(tmp_path.iterdir()) == []


def test_the_policy_file_names_every_key() -> None:
    text = policy_text()
    assert Policy.model_validate(tomllib.loads(text)) == Policy()
    for name in (*Policy.model_fields, "share", "noise", "aggregation", "epsilon_metrics"):
        assert name in text, name


@pytest.mark.parametrize(
    ("kind", "folder"), [(Kind.scenario, LIBRARY), (Kind.study, STUDIES)], ids=["scenarios", "studies"]
)
def test_every_file_of_the_library_fits_the_exported_schema(kind: Kind, folder: Path) -> None:
    check = jsonschema.Draft202012Validator(schema_of(kind))
    for path in folder.glob("*.toml"):
        check.validate(tomllib.loads(path.read_text()))


def test_the_schema_tells_an_editor_what_casam_would_refuse() -> None:
    check = jsonschema.Draft202012Validator(schema_of(Kind.scenario))
    check.validate(tiny_table())
    for wrong in (tiny_table(trainig={}), tiny_table(training={"epochs": 0}), tiny_table(seed="one")):
        assert not check.is_valid(wrong)
    jsonschema.Draft202012Validator(schema_of(Kind.policy)).validate(tomllib.loads(policy_text()))


def test_schema_is_printed_as_json(casam: Casam) -> None:
    assert json.loads(casam("schema", "policy").out)["title"] == Policy.__name__
    assert json.loads(casam("schema").out)["title"] == Scenario.__name__
