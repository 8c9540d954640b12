"""A question: a finished simulated run, and keys of its scenario that would be different."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import RunInputError, ScenarioError
from casam_core.files import make_folder, write_atomic
from scenarios.ask.remembering import FOLDER
from scenarios.engines.preflight import checked_split
from scenarios.engines.run import Start
from server.run.summary_schema import Summary, read_json, read_summary

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the study that answers the same question with full runs."""


@dataclass(frozen=True)
class Question:
    """What is asked. settings: KEY=VALUE. old, new: the run's scenario, without and with the settings."""

    run: Path
    settings: tuple[str, ...]
    start: Start
    summary: Summary
    old: Scenario
    new: Scenario

    @property
    def data_root(self) -> Path | None:
        """Base folder of the images."""
        return Path(self.start.data_root) if self.start.data_root else None


def question(run: Path, settings: Sequence[str]) -> Question:
    """Read a question. Raises RunInputError, ScenarioError or DataError: nothing was written."""
    run = run.expanduser().resolve()
    if not settings:
        raise ScenarioError("ask: expected what would be different, e.g. --set training.epochs=3, found none")
    summary = read_summary(run)
    if not (run / "order.json").is_file():
        raise elsewhere(run, "order.json")
    start = Start(**read_json(run / "order.json"))
    path = run / "scenario.json"
    old, new = (with_weights(read_scenario(path, changes), start.checkpoint) for changes in ((), settings))
    for site in old.institutions:
        if not (run / "institutions" / site.name / "private").is_dir():
            raise elsewhere(run, f"private folder of {site.name}")
    asked = Question(run, tuple(settings), start, summary, old, new)
    check_images(asked)
    return asked


def check_images(asked: Question) -> None:
    """Divide the images of every institution that the question changes, as the changed run would.

    Inside the run an institution says one word, and its log ends with the replay. Raises DataError.
    """
    before = {site.name: site for site in asked.old.institutions}
    for site in asked.new.institutions:
        if site != before.get(site.name):
            for task, spec in site.data.items():
                checked_split(asked.new, site.name, task, spec, asked.data_root, read=False)


def elsewhere(run: Path, missing: str) -> RunInputError:
    """The fault of a run whose images are not here."""
    return RunInputError(
        f"{run}: expected a run that `casam run` simulated on this machine, found no {missing}; a server of "
        "a deployment has no images: simulate the scenario with `casam run`, then ask about that run"
    )


def with_weights(scenario: Scenario, checkpoint: str) -> Scenario:
    """The scenario with the backbone's file on this machine."""
    backbone = scenario.backbone.model_copy(update={"checkpoint": checkpoint or None})
    return scenario.model_copy(update={"backbone": backbone})


def write_study(asked: Question) -> str:
    """Write the study that answers the question with full runs; return the command that runs it."""
    make_folder(asked.run / FOLDER, 0o700)
    path = asked.run / FOLDER / "study.toml"
    lines = [
        'name = "ask"',
        'scenario = "../scenario.json"',
        f"seeds = {list(SEEDS)}",
        "[variants.policy.now]",
        "[variants.policy.asked]",
        *(f"set.{json.dumps(key)} = {value}" for key, value in map(split_setting, asked.settings)),
        "[[comparisons]]",
        'axis = "policy"',
        'baseline = "now"',
        'question = "What does the other policy cost?"',
    ]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    root = f" --data-root {asked.start.data_root}" if asked.start.data_root else ""
    return f"casam study {path}{root}"


def split_setting(setting: str) -> tuple[str, str]:
    """(key, value as TOML) of KEY=VALUE; what is no TOML value is a text, as for `casam run --set`."""
    key, _, text = setting.partition("=")
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        text = json.dumps(text)
    return key.strip(), text
