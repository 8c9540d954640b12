"""The wheel: built, installed into a fresh environment, and run there as `pipx install` leaves it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from tests.conftest import tiny_table
from tests.house import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UV = str(Path(sys.executable).with_name("uv"))


def call(*words: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the commands of a fresh environment that holds the wheel. uv's cache is shared."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = call("git", "ls-files", cwd=ROOT).stdout.splitlines()
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, source / name)
    built = call(UV, "build", "--wheel", "--out-dir", folder / "dist", cwd=source)
    if built.returncode and "error sending request" in built.stderr + built.stdout:
        pytest.skip("no package registry can be reached")
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    assert call(UV, "venv", "--python", sys.executable, folder / "venv", cwd=folder).returncode == 0
    done = call(
        *(UV, "pip", "install", "--python", folder / "venv" / "bin" / "python"),
        *("-c", ROOT / "constraints.txt", f"{wheel}[simulation]"),
        cwd=folder,
    )
    if done.returncode and "error sending request" in done.stderr:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin"


def test_a_simulation_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The quickstart's engine and command, with a tiny backbone."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    done = call(
        *(installed / "casam", "run", "tiny.toml", "--out", tmp_path / "run"),
        cwd=tmp_path,
        CASAM_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"Run folder: {tmp_path / 'run'}"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


def test_the_wheels_bundle_is_that_of_the_clone(installed: Path, tmp_path: Path) -> None:
    """A site that pinned one accepts the other."""
    own = call(
        *(sys.executable, "-c", "from scenarios.commands.cli import main; main()", "bundle", "hash"),
        cwd=ROOT,
        PYTHONPATH=str(ROOT),
    )
    assert call(installed / "casam", "bundle", "hash", cwd=tmp_path).stdout == own.stdout
