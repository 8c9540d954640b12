"""`casam run` as a person types it: bad input is one line, exit status 2, and nothing is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import typer
from PIL import Image

from casam_core.config.library import library_names, resolve_scenario
from scenarios.commands.cli import app
from scenarios.export.schema_pages import run_folder_page, scenario_page, site_file_page
from tests.casam_command import Casam
from tests.conftest import tiny_table

DOCS = Path(__file__).parents[3] / "docs"


def scenario_file(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.toml"
    path.write_text(tomli_w.dumps(tiny_table(**changes)))
    return path


@pytest.fixture
def refused(casam: Casam, tmp_path: Path) -> Callable[..., str]:
    """Run, expect a refusal before anything is written, return the one line."""

    def call(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = casam("run", *arguments, "--engine", "inprocess", "--out", "out")
        assert result.status == 2, result.err
        (line,) = result.err.strip().splitlines()
        assert line.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return call


Refused = Callable[..., str]


def dataset(root: Path, images: int = 12) -> Path:
    """Squares on noise: the folder layout of a site."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(images):
        pixels, mask = rng.integers(0, 99, (48, 48), np.uint8), np.zeros((48, 48), np.uint8)
        x, y = rng.integers(2, 20, 2)
        mask[y : y + 20, x : x + 20] = 1
        Image.fromarray(np.where(mask, 200, pixels).astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    return root


def folder_scenario(tmp_path: Path) -> Path:
    institutions = [{"name": "site", "data": {"squares": {"path": "squares"}}}]
    return scenario_file(tmp_path, stream=["squares"], institutions=institutions)


def test_a_run_ends_with_its_folder_and_status_0(tmp_path: Path, casam: Casam) -> None:
    path = scenario_file(tmp_path)
    result = casam("run", str(path), "--engine", "inprocess", "--out", "results")
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1] == f"Run folder: {tmp_path / 'results'}"
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["status"] == "completed"


def test_a_folder_of_images_runs_through(tmp_path: Path, casam: Casam) -> None:
    dataset(tmp_path / "data" / "squares")
    path = folder_scenario(tmp_path)
    result = casam("run", str(path), "--engine", "inprocess", "--data-root", "data", "--out", "run")
    assert result.status == 0, result.err


def test_an_unknown_key_is_named_with_its_file(tmp_path: Path, refused: Refused) -> None:
    path = scenario_file(tmp_path, trainig={"epochs": 3})
    line = refused(str(path))
    assert "mine.toml" in line
    assert "unknown key 'trainig'" in line


def test_a_wrong_value_is_named_with_key_expected_and_found(tmp_path: Path, refused: Refused) -> None:
    line = refused(str(scenario_file(tmp_path)), "--set", "training.epochs=none")
    assert "training.epochs" in line
    assert "integer" in line
    assert "'none'" in line


def test_a_task_nobody_holds(tmp_path: Path, refused: Refused) -> None:
    line = refused(str(scenario_file(tmp_path, stream=["polyp", "liver"])))
    assert "task 'liver' of the stream is held by no institution" in line


def test_two_institutions_of_one_name(tmp_path: Path, refused: Refused) -> None:
    sites = tiny_table()["institutions"]
    line = refused(str(scenario_file(tmp_path, institutions=[*sites, sites[0]])))
    assert "two institutions are named 'north'" in line


def test_an_unknown_scenario_lists_the_library(tmp_path: Path, refused: Refused) -> None:
    line = refused("quikstart")
    assert "quickstart" in line
    assert "'quikstart'" in line


@pytest.mark.parametrize("form", ["alignment.form='none'", "router.kind='none'", "training.strategy='none'"])
def test_a_name_no_registry_knows_lists_the_known_ones(tmp_path: Path, form: str, refused: Refused) -> None:
    assert "expected one of" in refused(str(scenario_file(tmp_path)), "--set", form)


def test_a_missing_dataset_folder(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "data").mkdir()
    line = refused(str(folder_scenario(tmp_path)), "--data-root", "data")
    assert str(tmp_path / "data" / "squares") in line


def test_a_relative_folder_without_data_root(tmp_path: Path, refused: Refused) -> None:
    assert "--data-root" in refused(str(folder_scenario(tmp_path)))


def spoil_missing_mask(root: Path) -> None:
    (root / "masks" / "03.png").unlink()


def spoil_size(root: Path) -> None:
    Image.fromarray(np.ones((10, 48), np.uint8)).save(root / "masks" / "03.png")


def spoil_empty(root: Path) -> None:
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(root / "masks" / "03.png")


def spoil_corrupt(root: Path) -> None:
    path = root / "images" / "03.png"
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("spoil", [spoil_missing_mask, spoil_size, spoil_empty, spoil_corrupt])
def test_a_broken_pair_is_named(tmp_path: Path, spoil: Any, refused: Refused) -> None:
    spoil(dataset(tmp_path / "data" / "squares"))
    assert "03" in refused(str(folder_scenario(tmp_path)), "--data-root", "data")


def test_too_few_images_for_a_test_split(tmp_path: Path, refused: Refused) -> None:
    dataset(tmp_path / "data" / "squares", images=2)
    assert "test" in refused(str(folder_scenario(tmp_path)), "--data-root", "data")


def test_several_faults_are_one_list(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "data").mkdir()
    sites = [{"name": name, "data": {"squares": {"path": name}}} for name in ("east", "west")]
    path = scenario_file(
        tmp_path, stream=["squares"], institutions=sites, backbone={"name": "vit_b", "checkpoint": "sam.pth"}
    )
    result = casam("run", str(path), "--data-root", "data", "--out", "out", "--engine", "inprocess")
    assert result.status == 2
    first, *faults = result.err.strip().splitlines()
    assert first == "error: 3 things are missing or broken:"
    assert [word in fault for word, fault in zip(("sam.pth", "east", "west"), faults, strict=True)] == [
        True
    ] * 3
    assert not (tmp_path / "out").exists()


def test_a_wrong_checkpoint(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "sam.pth").write_bytes(b"not weights")
    path = scenario_file(tmp_path, backbone={"name": "vit_b", "checkpoint": str(tmp_path / "sam.pth")})
    line = refused(str(path))
    assert "wrong checkpoint" in line
    assert "SHA-256" in line


def test_a_used_run_folder_is_left_alone(tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    result = casam("run", str(scenario_file(tmp_path)), "--engine", "inprocess", "--out", "out")
    assert result.status != 0
    assert "choose another --out" in result.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_help_teaches_where_to_start(tmp_path: Path, casam: Casam) -> None:
    result = casam("--help")
    assert result.status == 0
    assert "casam run quickstart" in result.out


def test_every_help_explains_the_arguments_of_its_command(casam: Casam) -> None:
    """typer below 0.21 leaves these texts out with click 8.5."""
    arguments = [
        (path, argument.help)
        for path, command in commands(typer.main.get_command(app))
        for argument in command.params
        if argument.param_type_name == "argument"
    ]
    assert len(arguments) > 20
    for path, text in arguments:
        assert text, f"{path}: an argument without help"
        shown = " ".join(casam(*path.split(), "--help").out.replace("│", " ").split())
        assert " ".join(text.split()[:3]) in shown, f"casam {path} --help"


def test_every_command_that_needs_a_word_shows_an_example() -> None:
    for path, command in commands(typer.main.get_command(app)):
        asks = any(
            parameter.required or not parameter.opts[0].startswith("-") for parameter in command.params
        )
        assert not asks or f"For example: casam {path}" in " ".join((command.help or "").split()), path


def commands(group: typer.core.TyperGroup, path: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command below a group, with its words."""
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, words)
        else:
            yield words, command


def test_version(tmp_path: Path, casam: Casam) -> None:
    assert casam("--version").out.startswith("casam ")


@pytest.mark.parametrize("name", library_names())
def test_every_scenario_of_the_library_is_valid(name: str) -> None:
    scenario = resolve_scenario(name)
    assert scenario.name == name
    assert scenario.description


def test_pages_that_are_made_from_schemas_are_up_to_date() -> None:
    page = (DOCS / "scenario.md").read_text()
    assert page == scenario_page(), "run: python -m scenarios.export.schema_pages"
    page = (DOCS / "site-file.md").read_text()
    assert page == site_file_page(), "run: python -m scenarios.export.schema_pages"
    page = (DOCS / "run-folder.md").read_text()
    assert page == run_folder_page(page), "run: python -m scenarios.export.schema_pages"
    assert "| `routing.accuracy` |" in page


def test_the_command_is_installed() -> None:
    assert shutil.which("casam", path=str(Path(sys.executable).parent))


def test_no_command_prints_what_opacus_recommends_to_its_programmers() -> None:
    code = """
import contextlib, sys
from casam_core.privacy.accounting import Mechanism, epsilon_of
from scenarios.commands.cli import main
sys.argv = ["casam", "--version"]
with contextlib.suppress(SystemExit):
    main()
print(epsilon_of([Mechanism(noise_multiplier=1e4, sample_rate=0.2)], delta=1e-3))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("\n0.0\n")
    assert ended.stderr == "", "it wants more orders of the Rényi divergence; the bound holds at every order"


def test_help_is_instant_because_no_command_imports_its_work_before_it_runs() -> None:
    heavy = {"torch", "numpy", "pandas", "altair", "pyarrow", "matplotlib", "scipy", "flwr", "ray"}
    code = f"import sys, scenarios.commands.cli; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
