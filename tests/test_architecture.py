"""What must stay true of the repository as a whole."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from casam_core.protocol.fingerprint import ROOT, TRUSTED

TRUSTED_LINES = 20_000
"""Lines of Python in the bundle: what an auditor reads before a site pins it. Lower it when code goes."""

# Spelled in two parts, so that this file passes its own test.
REGISTRIES = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
    "conda" + ".anaconda.org",
]
MACHINE_PATHS = ["/wo" + "rk/", "/ro" + "ot/", "/opt/py" + "pi"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked_files() -> list[Path]:
    """Files git knows; skips where the tests run without a checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def distribution(requirement: str) -> str:
    """Name of the package a requirement asks for."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_imports_point_one_way() -> None:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    result = subprocess.run(
        [str(command), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_registry_and_no_machine_in_any_file() -> None:
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for word in REGISTRIES + MACHINE_PATHS:
            assert word not in text, f"{path.relative_to(ROOT)} contains {word!r}"


def test_a_bare_flower_run_has_nothing_to_install(project: dict[str, Any]) -> None:
    """Every dependency is overridden by one that no Python fits, else `flwr run .` would download it."""
    extras = project["project"]["optional-dependencies"].values()
    wanted = {
        distribution(r) for r in project["project"]["dependencies"] + [r for extra in extras for r in extra]
    }
    overrides = project["tool"]["uv"]["override-dependencies"]
    assert {distribution(r) for r in overrides} == wanted
    assert all(r.endswith("; python_version < '3'") for r in overrides)


def test_pins_cover_what_is_asked_for(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", pin) for pin in pins)
    names = {distribution(pin) for pin in pins}
    asked = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    assert {distribution(r) for r in asked} <= names
    assert {"torch==2.14.1", "torchvision==0.29.1", "flwr==1.41.0"} <= set(pins)


def test_the_citation_is_of_this_version(project: dict[str, Any]) -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {project['project']['version']}" in lines
    assert f"license: {project['project']['license']}" in lines


def test_every_package_says_that_it_is_typed(project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in packages if not (ROOT / name / "py.typed").exists()] == []


def test_the_bundle_and_the_fingerprint_hold_the_same_trusted_folders(project: dict[str, Any]) -> None:
    assert project["tool"]["flwr"]["app"]["fab-include"] == [f"{folder}/**" for folder in TRUSTED]


@pytest.fixture(scope="module")
def packed() -> dict[str, bytes]:
    """Content of the Flower bundle by path."""
    from flwr.cli.build import build_fab_from_files

    files = {p.relative_to(ROOT).as_posix(): p for p in tracked_files() if not p.is_symlink()}
    bundle, _ = build_fab_from_files(files)
    assert len(bundle) < 5 * 1024**2, "Flower refuses more than 10 MiB"
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_holds_trusted_code_and_the_library_and_nothing_else(packed: dict[str, bytes]) -> None:
    folders = tuple(f"{folder}/" for folder in TRUSTED)
    names = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    code = {name for name in names if name.startswith(folders) and name.endswith((".py", ".toml"))}
    assert code <= packed.keys(), "Flower drops files silently, for instance test_*.py"
    beside = {name for name in packed if not name.startswith((*folders, ".info/"))}
    assert beside <= {"pyproject.toml", "LICENSE"}
    assert {name for name in packed if name.startswith("scenarios/") and not name.endswith(".toml")} == set()


def test_what_a_site_must_read_is_small(packed: dict[str, bytes]) -> None:
    lines = sum(content.count(b"\n") for name, content in packed.items() if name.endswith(".py"))
    assert lines <= TRUSTED_LINES


def test_no_other_distribution_brings_a_package_of_our_names(project: dict[str, Any]) -> None:
    """An installed command would import that one, as the folder of a checkout comes last on its path."""
    installed = packages_distributions()
    ours = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert "opacus" in installed
    assert {name: set(installed.get(name, ())) - {"casam"} for name in ours} == {name: set() for name in ours}


def test_the_installed_command_finds_its_benchmarks(tmp_path: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "casam"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run(
        [command, "bench"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "utilisation" in listed.stdout
