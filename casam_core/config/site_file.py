"""The site file: an institution's own description of its images, and how it approves scenarios.

In deployment the site writes it (`casam site init`), and a scenario only names the tasks: no path, pattern,
limit or share of a scenario reaches a real site's images. In a simulation the scenario's `data` tables stand
in its place (`simulated_task`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from casam_core.config.data_spec import DataSpec
from casam_core.config.scenario import Name, Scenario
from casam_core.config.section import Section
from casam_core.config.toml import explain, read_section
from casam_core.errors import DataError


class MinimumSpec(Section):
    """The smallest number of images from which something may be released."""

    train: int = Field(5, ge=1, description="Training images behind a layer or a router.")
    test: int = Field(5, ge=1, description="Test images behind a score.")


class TaskDescription(DataSpec):
    """The images of one task at this site."""

    minimum: MinimumSpec = MinimumSpec()
    seed: int = Field(0, ge=0, description="Seed of generated images (reader phantom).")

    @model_validator(mode="after")
    def _says_where_the_images_are(self) -> TaskDescription:
        if self.undescribed:
            raise ValueError("expected the key 'path', or 'phantom' with reader = \"phantom\"")
        return self


class ApprovalRules(Section):
    """Which scenarios need no approval by a person if approve = "policy"."""

    methods: list[str] = Field(["casam"], description="Allowed methods.")
    strategies: list[str] = Field(
        ["fedavg", "fedprox", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"],
        description="Allowed training.strategy. scaffold also asks for a mean gradient.",
    )
    max_stages: int = Field(20, ge=1, description="Largest number of tasks in the stream.")
    max_rounds: int = Field(5, ge=1, description="Largest training.rounds.")
    max_epochs: int = Field(100, ge=1, description="Largest training.epochs; its default is allowed.")
    max_institutions: int = Field(100, ge=1, description="Largest number of institutions.")

    def faults(self, scenario: Scenario) -> list[str]:
        """Why the rules do not let the scenario in; empty if they do."""
        sizes = {
            "max_stages": len(scenario.stream),
            "max_rounds": scenario.training.rounds,
            "max_epochs": scenario.training.epochs or 1,
            "max_institutions": len(scenario.institutions),
        }
        faults = [
            f"rules.{key} is {getattr(self, key)}, found {found}"
            for key, found in sizes.items()
            if found > getattr(self, key)
        ]
        chosen = {"methods": scenario.method, "strategies": scenario.training.strategy}
        faults += [
            f"rules.{key} is {', '.join(getattr(self, key))}, found {found}"
            for key, found in chosen.items()
            if found not in getattr(self, key)
        ]
        return faults


class SiteFile(Section):
    """What a site says about itself."""

    approve: Literal["ask", "policy", "any"] = Field(
        "ask",
        description="ask: a person approves each scenario. policy: `rules` approve it. any: nobody checks.",
    )
    max_scenarios: int = Field(
        20, ge=1, description="Largest number of different scenarios that may use one task's images."
    )
    rules: ApprovalRules = ApprovalRules()
    tasks: dict[Name, TaskDescription] = Field(default_factory=dict, description="By task, its images.")
    relay: str | None = Field(
        None,
        description="In place of tasks: folder of questions to the institutions that this one stands for "
        "(an absolute path; docs/deployment.md).",
    )

    @model_validator(mode="after")
    def _writes_all_places_in_one_way(self) -> SiteFile:
        # `max_scenarios` counts by place, and only a node knows where its relative paths start.
        real = {name: spec.place for name, spec in self.tasks.items() if spec.path is not None}
        absolute = sorted(name for name, place in real.items() if Path(place).is_absolute())
        relative = sorted(real.keys() - set(absolute))
        if absolute and relative:
            raise ValueError(
                f"tasks: expected only relative paths or only absolute ones, found {absolute[0]} "
                f"absolute and {relative[0]} relative; max_scenarios cannot tell if both are the same"
            )
        return self

    @model_validator(mode="after")
    def _has_images_or_stands_for_others(self) -> SiteFile:
        if self.relay is not None and self.tasks:
            raise ValueError(
                f"relay: expected no table [tasks.NAME] beside it, found {min(self.tasks)}; the institutions "
                "behind a relay describe their images themselves"
            )
        if self.relay is not None and not Path(self.relay).is_absolute():
            raise ValueError(f"relay: expected an absolute path, found {self.relay}")
        return self

    def described(self, tasks: Iterable[str]) -> dict[str, TaskDescription]:
        """The descriptions of `tasks`; none at a relay, whose members describe them.

        Raises DataError for a task that this site does not describe.
        """
        if self.relay is not None:
            return {}
        if missing := sorted(set(tasks) - self.tasks.keys()):
            raise DataError(
                f"site file: expected [tasks.{missing[0]}], because the scenario names this task here, found "
                f"{', '.join(sorted(self.tasks)) or 'no task'}; describe it, or do not approve the scenario"
            )
        return {task: self.tasks[task] for task in tasks}


def read_site_file(path: Path) -> SiteFile:
    """The site file in `path`. Raises DataError."""
    try:
        return read_section(path, SiteFile, "site", DataError)
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error)}".replace("scenario.md", "site-file.md")) from error


def simulated_task(spec: DataSpec, seed: int) -> TaskDescription:
    """A scenario's `data` table in the place of a site's description. seed: the run's.

    Raises DataError if the table is empty.
    """
    if spec.undescribed:
        raise DataError(
            "data: expected the keys of a dataset, such as path, found an empty table; only the site files "
            "of a deployment describe such a task"
        )
    return TaskDescription(**spec.model_dump(), minimum=MinimumSpec(train=1, test=1), seed=seed)
