"""What the deployment commands refuse before anything starts, and the small ones."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from casam_core.config.library import library_names, scenario_path
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines.bundle import build_bundle, bundle_hash, stage_app
from tests.casam_command import Casam
from tests.conftest import tiny_table


def test_a_key_is_made_once_and_stays_closed(tmp_path: Path, casam: Casam) -> None:
    key = tmp_path / "node.key"
    assert casam("deploy", "key", "--out", key).status == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" in key.read_bytes()
    assert (tmp_path / "node.key.pub").read_bytes().startswith(b"ecdsa-sha2-nistp384")
    before = key.read_bytes()
    assert "keys are never overwritten" in casam("deploy", "key", "--out", key).refusal
    assert key.read_bytes() == before


def test_provision_then_check(tmp_path: Path, casam: Casam) -> None:
    folders = [
        "--server",
        "localhost:9092",
        "--out",
        tmp_path / "kit",
        "--home",
        tmp_path,
        "--data",
        tmp_path,
    ]
    made = casam("provision", "--institutions", "north", *folders)
    assert made.status == 0, made.err
    node = tmp_path / "kit" / "institutions" / "north" / "node.toml"
    assert "expected a table [tasks.NAME]" in casam("node", "--check", node).refusal  # the site writes it
    with node.with_name("site.toml").open("a") as site:
        site.write('[tasks.polyp]\npath = "polyp"\n')
    assert "task 'polyp' of the site file: " in casam("node", "--check", node).refusal  # no such folder
    write_images(tmp_path / "polyp", squares=2)
    assert "labels: expected one value per object" in casam("node", "--check", node).refusal
    assert "labels: expected one value per object" in casam("node", node).refusal, "not only with --check"
    with node.with_name("site.toml").open("a") as site:
        site.write('labels = "classes"\n')
    ready = casam("node", "--check", node)
    assert "\nready: north to localhost:9092, bundle " in ready.out
    node.write_text(node.read_text().replace('bundle = "', 'bundle = "sha256:'))
    assert "bundle: string should match pattern" in casam("node", "--check", node).refusal


def write_images(folder: Path, squares: int) -> None:
    """Six images; a mask shows this many squares of one value."""
    mask = np.zeros((64, 64), np.uint8)
    for square in range(squares):
        mask[20 * square : 20 * square + 10, 5:15] = 255
    for number in range(6):
        for part, pixels in (("images", np.full((64, 64, 3), 20 * number, np.uint8)), ("masks", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")


def test_the_bundles_hash_is_of_the_files_and_of_nothing_else(tmp_path: Path) -> None:
    one, other = stage_app(ROOT, tmp_path / "one"), stage_app(ROOT, tmp_path / "other")
    assert build_bundle(one) == build_bundle(other), "the folder's place and the files' times do not count"
    with (other / "client" / "policy.py").open("a") as code:
        code.write("# one comment\n")
    assert bundle_hash(build_bundle(one)) != bundle_hash(build_bundle(other))


def test_a_bundle_is_written_for_reading(tmp_path: Path, casam: Casam) -> None:
    built = casam("bundle", "build", "--out", tmp_path / "casam.fab")
    bundle = (tmp_path / "casam.fab").read_bytes()
    assert built.out.strip() == casam("bundle", "hash").out.strip() == bundle_hash(bundle)
    with zipfile.ZipFile(tmp_path / "casam.fab") as packed:
        names = set(packed.namelist())
    assert {"client/release/guard.py", "server/stream.py", "pyproject.toml"} <= names
    library = {scenario_path(name).relative_to(ROOT).as_posix() for name in library_names()}
    assert {name for name in names if name.startswith("scenarios/")} == library, "data, and no code"


def test_a_deployment_whose_data_a_site_would_not_open_never_starts(tmp_path: Path, casam: Casam) -> None:
    table = tiny_table()
    table["institutions"][0]["data"] = {"polyp": {"path": "../elsewhere"}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    scenario, out = str(tmp_path / "tiny.toml"), str(tmp_path / "run")
    nowhere = casam("deploy", "local", scenario, "--out", out)
    assert "expected a folder to start from for this relative path" in nowhere.refusal
    missing = casam("deploy", "local", scenario, "--out", out, "--data-root", tmp_path)
    assert "elsewhere" in missing.refusal
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [("nodes",), ("run", "quickstart", "--register", "register.json")])
def test_a_superlink_that_does_not_answer_is_one_line(
    command: tuple[str, ...], tmp_path: Path, casam: Casam
) -> None:
    server = ("--server", "localhost:9092")
    made = casam("provision", "--institutions", "north,south", *server, "--out", tmp_path / "kits")
    assert made.status == 0, made.err
    authority, register = (tmp_path / "kits" / "operator" / name for name in ("ca.crt", "register.json"))
    words = [register if word == "register.json" else word for word in command]
    answer = casam("deploy", *words, "--superlink", "localhost:1", "--authority", authority)
    assert answer.status == 1
    assert answer.err.splitlines()[-1].startswith("error: --superlink: expected a SuperLink that answers")
    assert len(answer.err.splitlines()) == 1


def test_a_superlink_without_its_authority_is_not_asked(tmp_path: Path, casam: Casam) -> None:
    answer = casam("deploy", "nodes", "--superlink", "localhost:1", "--authority", tmp_path / "ca.crt")
    assert "no certificate at" in answer.refusal


def test_numbers_of_nodes_are_text_in_json(casam: Casam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that keep numbers as floating point round one of 64 bits."""
    operator, number = "scenarios.deploy.operator", 2**63 + 1
    monkeypatch.setattr(f"{operator}.remote_superlink", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(f"{operator}.list_nodes", lambda link: {number: "online"})
    told = casam("deploy", "nodes", "--superlink", "here:1", "--authority", "ca.crt", "--json").out
    assert json.loads(told) == [{"node": str(number), "status": "online", "key": ""}]
