"""What must stay true of the repository as a whole."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from casam_core.protocol.fingerprint import ROOT, TRUSTED
from scenarios.commands.cli import EXTRAS, advice_for
from scenarios.engines.bundle import build_bundle

TRUSTED_LINES = 28_724
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


def asked_for(project: dict[str, Any]) -> set[str]:
    """Names of all packages that the project or one of its extras asks for."""
    extras = project["project"]["optional-dependencies"].values()
    requirements = project["project"]["dependencies"] + [r for extra in extras for r in extra]
    return {distribution(requirement) for requirement in requirements} - {"casam"}


def test_a_bare_flower_run_has_nothing_to_install(project: dict[str, Any]) -> None:
    """Flower calls `uv sync` in the bundle; there this line says that the project asks for nothing."""
    (about,) = project["tool"]["uv"]["dependency-metadata"]
    assert about == {"name": "casam", "version": project["project"]["version"], "requires-dist": []}


def test_uv_installs_nothing_in_the_bundle_and_everything_in_a_clone(tmp_path: Path) -> None:
    """The real uv, offline. In a clone uv.toml takes the place of that line."""
    uv = [str(Path(sys.executable).with_name("uv"))]
    environment = os.environ | {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_OFFLINE": "1"}

    def sync(folder: Path) -> subprocess.CompletedProcess[str]:
        words = [*uv, "sync", "--python", sys.executable, "--no-install-project", "--inexact"]
        return subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    with zipfile.ZipFile(io.BytesIO(build_bundle(ROOT))) as bundle:
        bundle.extractall(tmp_path / "bundle")
    done = sync(tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert "Resolved 1 package" in done.stderr
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "uv.toml", "README.md"):
        shutil.copyfile(ROOT / name, clone / name)
    done = sync(clone)
    assert done.returncode != 0, "offline and without a cache it cannot find what the project asks for"
    assert "Because only" in done.stderr or "not found in the cache" in done.stderr, done.stderr


def test_an_image_without_cuda_asks_for_no_package_of_cuda() -> None:
    lock = (ROOT / "requirements-node.lock").read_text()

    def printed(*options: str) -> str:
        words = [sys.executable, str(ROOT / "docker" / "cpu_only.py"), *options, "requirements-node.lock"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    torch = re.findall(r"(?m)^(torch(?:vision)?==\S+)", lock)
    assert sorted(printed("--torch").split()) == sorted(torch)
    kept = set(re.findall(r"(?m)^([a-z0-9.-]+)==", printed()))
    left_out = set(re.findall(r"(?m)^([a-z0-9.-]+)==", lock)) - kept
    assert {"torch", "torchvision", "triton"} <= left_out
    assert all(re.match(r"torch|triton|nvidia-|cuda-", name) for name in left_out)
    assert not any(re.match(r"torch|triton|nvidia|cuda", name) for name in kept)


def test_the_images_context_has_what_the_dockerfile_copies() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    default = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", dockerfile))
    copied = [
        re.sub(r"\$\{(\w+)\}", lambda found: default[found[1]], source)
        for line in re.findall(r"(?m)^COPY (.+)$", dockerfile)
        for source in line.split()[:-1]
    ]
    assert copied
    assert [source for source in copied if source not in let_through] == []


def test_pins_cover_what_is_asked_for(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", pin) for pin in pins)
    assert asked_for(project) <= {distribution(pin) for pin in pins}
    assert {"torch==2.14.1", "torchvision==0.29.1", "flwr==1.41.0"} <= set(pins)


def test_dev_has_every_extra(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    (own,) = [requirement for requirement in extras["dev"] if distribution(requirement) == "casam"]
    assert own == f"casam[{','.join(sorted(extras.keys() - {'dev'}))}]"


PLOTS_AND_REPORTS = {
    "altair", "cyclonedx-python-lib", "matplotlib", "mlflow-skinny", "monai", "narwhals", "pandas", "plotly",
    "pyarrow", "ray", "selenium", "tensorboard", "vl-convert-python",
}  # fmt: skip
"""Never at a site. PyTorch itself asks for Jinja2, and Flower for starlette, uvicorn, rich and typer."""


def locked(name: str) -> set[str]:
    """Names of the packages in a lock file."""
    lines = (ROOT / name).read_text().splitlines()
    return {distribution(line) for line in lines if re.match(r"[A-Za-z0-9]", line)}


def test_a_site_installs_what_trusted_code_imports_and_no_plots_or_reports(project: dict[str, Any]) -> None:
    site = locked("requirements-node.lock")
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["medical"]]
    assert {distribution(requirement) for requirement in wanted} <= site
    assert site & PLOTS_AND_REPORTS == set()
    # The image of the compose demo is a site's; its one-shot services and its gateway are the operator's.
    assert {distribution(requirement) for requirement in extras["deploy"]} <= site


def test_trusted_code_imports_what_is_declared(project: dict[str, Any]) -> None:
    """Also where the import stands in a function."""
    extras = project["project"]["optional-dependencies"]
    declared = [*project["project"]["dependencies"], *extras["medical"], *extras["lora"]]
    allowed = {distribution(requirement) for requirement in declared}
    brings = packages_distributions()
    own = sys.stdlib_module_names | {"casam_core", "client", "server"}
    for path in tracked_files():
        if not path.relative_to(ROOT).as_posix().startswith(("casam_core/", "client/", "server/")):
            continue
        for module in imported(path):
            names = {distribution(name) for name in brings.get(module, ())}
            assert names & allowed or module in own, f"{path} imports {module}"


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file of Python imports."""
    if path.suffix != ".py":
        return set()
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in plain | froms}


def test_a_missing_extra_is_named(project: dict[str, Any]) -> None:
    extras, brings = project["project"]["optional-dependencies"], packages_distributions()
    for extra, modules in EXTRAS.items():
        for module in modules:
            assert extra in str(advice_for(ModuleNotFoundError(name=f"{module}.part")))
            if extra != "simulation":  # Ray comes as an extra of Flower's
                assert {distribution(name) for name in brings[module]} <= {
                    distribution(r) for r in extras[extra]
                }
    assert advice_for(ModuleNotFoundError(name="casam_core")) is None


def test_a_site_starts_without_the_extras_and_without_what_few_rounds_need(tmp_path: Path) -> None:
    """Without the tooling's packages a site can check its node file and start; and Flower starts a process
    for every message, so what costs half a second is imported where it is used."""
    hidden = sorted(module for extra in ("report", "simulation", "study") for module in EXTRAS[extra])
    program = (
        f"import client.client_app, sys; hidden = {hidden!r}\n"
        "from casam_core.model.compute import Compute, prepare_process\n"
        "prepare_process(Compute(device='cpu', threads=1, precision='float32', encoder='fast'))\n"
        "slow = ['opacus', 'pandas', 'scipy.stats', 'sympy', 'torch._dynamo', 'torchvision']\n"
        "print([m for m in [*slow, *hidden] if m in sys.modules])\n"
        "sys.modules.update(dict.fromkeys(hidden, None))\n"
        "import client.node.launcher, server.server_app\n"
        "from scenarios.commands.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, "node", "--check", str(tmp_path / "node.toml")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "[]"
    assert "no such node file" in said.stderr, said.stderr
    assert "Traceback" not in said.stderr


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


def test_no_link_is_tracked() -> None:
    """A tracked link to an environment takes the place of the environment itself at the next merge."""
    tracked_files()  # skips without a checkout
    listing = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in listing.stdout.splitlines() if line.startswith("120000")] == []
