"""The Flower ServerApp: it reads the settings, runs the scenario and writes the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from casam_core.config.library import library_names, scenario_path
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import RunError, ScenarioError
from server.members import serve_members
from server.run.run_folder import RunFolder
from server.stream import run_stream

app = ServerApp()

# Of a bare `flwr run`, whose Ray starts after this module is read: institutions select GPUs by the scenario's
# compute.device, and Ray need not say that it will stop hiding them. They are no nicer than this process.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the settings name, or answer for its institutions as a relay.

    Raises RunError; every error makes the Flower run fail.
    """
    try:
        settings = context.run_config
        scenario = scenario_of(str(settings["scenario"]))
        register = str(settings.get("register", ""))
        folder = open_folder(settings, scenario)
        if not settings.get("run"):  # nobody else chose the name, so nobody else knows it
            print(f"casam | server | run folder: {folder.path}", flush=True)
        keys = Path(register) if register else None
        if box := str(settings.get("relay", "")):
            serve_members(grid, scenario, folder, keys, Path(box).expanduser())
        else:
            run_stream(grid, scenario, folder, keys)
    except SystemExit as error:
        # Flower counts a SystemExit of the ServerApp as a completed run.
        raise RunError(f"the server was asked to exit ({error.code})") from error


def scenario_of(setting: str) -> Scenario:
    """A resolved scenario from its JSON, or a scenario of the library by its name. Raises ScenarioError."""
    if setting.startswith("{"):
        return Scenario.model_validate_json(setting)
    if setting not in (known := library_names()):
        raise ScenarioError(
            f"scenario: expected a name of the library ({', '.join(known)}), found {setting!r}"
        )
    return read_scenario(scenario_path(setting))


def open_folder(settings: Mapping[str, str | int | float | bool], scenario: Scenario) -> RunFolder:
    """The run folder `out`/`run`; without a run name, it is named after the scenario and the time.

    Raises RunError.
    """
    out = Path(str(settings["out"])).expanduser()
    if not out.is_absolute():
        raise RunError(
            f"out: expected an absolute path (the server's working directory is Flower's), found {out}"
        )
    name = str(settings.get("run", "")) or f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder(out / name, scenario if settings.get("resume") else None)
