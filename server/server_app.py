"""The Flower ServerApp: settings in, run folder out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.fingerprint import ROOT
from server.run.run_folder import RunFolder
from server.stream import run_stream

app = ServerApp()

LIBRARY = ROOT / "scenarios" / "library"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the settings name; any failure ends as a failed Flower run."""
    try:
        settings = context.run_config
        scenario = scenario_of(str(settings["scenario"]))
        run_stream(grid, scenario, open_folder(settings, scenario))
    except SystemExit as error:
        # Flower counts a SystemExit of the ServerApp as a completed run.
        raise RunError(f"the server was asked to exit ({error.code})") from error


def scenario_of(setting: str) -> Scenario:
    """A resolved scenario's JSON, or the name of a scenario of the library."""
    if setting.startswith("{"):
        return Scenario.model_validate_json(setting)
    path = LIBRARY / f"{setting}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in LIBRARY.glob("*.toml")))
        raise ScenarioError(f"scenario: expected a name of the library ({known}), found {setting!r}")
    return read_scenario(path)


def open_folder(settings: Mapping[str, str | int | float | bool], scenario: Scenario) -> RunFolder:
    """`out`/`run`; without a run name, the scenario's with the time."""
    out = Path(str(settings["out"])).expanduser()
    if not out.is_absolute():
        raise RunError(
            f"out: expected an absolute path (the server's working directory is Flower's), found {out}"
        )
    name = str(settings.get("run", "")) or f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder(out / name, scenario if settings.get("resume") else None)
