"""The run that a question is about: a folder, or the newest finished run of a scenario."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casam_core.config.library import resolve_scenario
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import CasamError, RunInputError, ScenarioError

RUNS = Path("runs")
"""Where `casam run` puts its folders."""

DECIDED_BY_THE_RUN: dict[str, Any] = {
    "description": True,
    "minutes": True,
    "look_at": True,
    "backbone": {"checkpoint"},
    "router": {"frame"},
    "privacy": {"library"},
}
"""Keys in which a run's scenario may differ from the file that it came from."""


def run_of(name: str, runs: Path = RUNS) -> Path:
    """The folder of a finished run.

    Args:
        name: a run's folder, or a scenario: a name of the library, or a path to a .toml file.
        runs: the folder that holds runs of scenarios.

    Raises:
        RunInputError: no run of the scenario is finished; the message has the command that makes one.
        ScenarioError: there is neither such a folder nor such a scenario.
    """
    if Path(name).expanduser().is_dir():
        return Path(name)
    try:
        scenario = resolve_scenario(name)
    except ScenarioError as error:
        raise ScenarioError(f"ask: expected the folder of a run, or a scenario; {error}") from error
    wanted = alike(scenario)
    found = [run for run in finished_in(runs) if scenario_of(run) == wanted]
    if found:
        return max(found, key=lambda run: (run / "summary.json").stat().st_mtime)
    command = shlex.join(["casam", "run", name, "--engine", "inprocess"])
    if any(spec.path for site in scenario.institutions for spec in site.data.values()):
        command += " --data-root FOLDER"
    raise RunInputError(
        f"ask: expected a finished run of {name} in {runs}, found none; make it once with `{command}`, then "
        "ask again"
    )


def finished_in(runs: Path) -> Iterator[Path]:
    """Folders of finished runs."""
    return (summary.parent for summary in sorted(runs.glob("*/summary.json")))


def scenario_of(run: Path) -> dict[str, object] | None:
    """What the run's scenario says, as `alike` has it; None for a run of a version that cannot be read."""
    try:
        return alike(read_scenario(run / "scenario.json"))
    except CasamError:
        return None


def alike(scenario: Scenario) -> dict[str, object]:
    """All of a scenario that its file decides: equal for a file and for its run."""
    return scenario.model_dump(mode="json", exclude=DECIDED_BY_THE_RUN)
