"""A study: one scenario under every combination of some settings and seeds, and its comparisons.

An axis is a key of the scenario with a list of values, or a name with variants: tables of keys, or other base
scenarios. A cell is one combination with one seed: one run.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from casam_core.config.library import find, names_in, scenario_path
from casam_core.config.scenario import Name, Scenario
from casam_core.config.section import Section
from casam_core.config.toml import apply_override, explain, parse_scenario, read_table, set_key
from casam_core.errors import ScenarioError, StudyError

STUDIES = Path(__file__).resolve().parents[1] / "studies"
"""The studies that come with the product."""

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,47}$")]
Settings = dict[str, Any]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def study_names() -> list[str]:
    """Names of the library's studies, sorted."""
    return names_in(STUDIES)


class Variant(Section):
    """One named value of an axis: keys that it sets, another base scenario, or both."""

    scenario: str | None = Field(None, description="Base scenario instead of the study's.")
    needs_data: bool = Field(False, description="Skipped without --data-root.")
    set: Settings = Field(default_factory=dict, description="Keys of the scenario and their values.")


class Comparison(Section):
    """All values of one axis compared with one of them, all else equal, paired by seed."""

    axis: str
    baseline: str = Field(description="The value with which the others are compared.")
    question: str = Field("", description="The question that the comparison answers, in plain words.")


class Study(Section):
    """Several runs that are compared."""

    name: Name
    description: str = ""
    minutes: float | None = Field(
        None, gt=0, description="Expected minutes of the whole study on two CPU cores."
    )
    look_at: str = Field("", description="What to look at in the results; for `casam studies`.")
    scenario: str = Field(description="Base scenario: a name of `casam scenarios`, or a path from this file.")
    set: Settings = Field(default_factory=dict, description="Keys of the scenario to change in all cells.")
    axes: Settings = Field(
        default_factory=dict, description='Lists of values by key of the scenario, e.g. "alignment.rank".'
    )
    variants: dict[Name, dict[Label, Variant]] = Field(
        default_factory=dict, description="Axes of named variants."
    )
    seeds: list[int] = Field([0], min_length=1, description="Every combination runs under each seed.")
    tune: list[Factor] = Field(
        default_factory=list,
        description="Multiples of the learning rate to choose from. Every combination that learns uses the "
        "one that is best on validation images under the first seed.",
    )
    tune_by: list[str] | None = Field(
        None,
        description="The axes whose values have learning rates of their own; the trials take the first value "
        "of every other axis. Left out: all axes.",
    )
    comparisons: list[Comparison] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_different_values(self) -> Study:
        axes = self.labels()
        if "seed" in axes:
            raise ValueError("axes.seed: seeds have a key of their own; write seeds = [...]")
        for axis, labels in axes.items():
            if not labels:
                raise ValueError(f"axis {axis!r}: expected values, found none")
            if len(set(labels)) < len(labels):
                raise ValueError(f"axis {axis!r}: two values have the label {duplicate(labels)!r}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers from 0 up, found {self.seeds}")
        if len(set(self.tune)) < len(self.tune):
            raise ValueError(f"tune: expected different factors, found {self.tune}")
        compared = [comparison.axis for comparison in self.comparisons]
        if len(set(compared)) < len(compared):
            raise ValueError(f"comparisons: axis {duplicate(compared)!r} stands twice; give it one baseline")
        return self

    @model_validator(mode="after")
    def _names_its_axes(self) -> Study:
        axes = self.labels()
        for axis in self.tune_by or ():
            if axis not in axes:
                raise ValueError(f"tune_by: axis {axis!r}: expected one of {', '.join(axes) or 'none'}")
        for comparison in self.comparisons:
            if comparison.axis not in axes:
                raise ValueError(
                    f"comparisons: axis {comparison.axis!r}: expected one of {', '.join(axes) or 'none'}"
                )
            if comparison.baseline not in axes[comparison.axis]:
                raise ValueError(
                    f"comparisons: baseline {comparison.baseline!r}: expected one of "
                    + ", ".join(axes[comparison.axis])
                )
        return self

    def values(self) -> dict[str, list[Any]]:
        """The lists of values in `axes`, by key. Raises ValueError for a value that is not a list."""
        found = {}
        for key, values in flat(self.axes):
            if not isinstance(values, list):
                raise ValueError(f"axes.{key}: expected a list of values, found {values!r}")
            found[key] = values
        return found

    def labels(self) -> dict[str, list[str]]:
        """By axis: the labels of its values in tables. Variants come first."""
        return {
            **{axis: list(variants) for axis, variants in self.variants.items()},
            **{key: [label_of(value) for value in values] for key, values in self.values().items()},
        }


@dataclass(frozen=True)
class Cell:
    """One run of a study. name: its run folder's name. labels: by axis."""

    name: str
    labels: Mapping[str, str]
    seed: int
    scenario: Scenario


@dataclass(frozen=True)
class Plan:
    """The cells of a study; the seed varies fastest. left_out: variants that lack data, as AXIS=LABEL."""

    study: Study
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...] = ()


def read_study(path: Path) -> Study:
    """The study in `path`. Raises StudyError."""
    return study_of(read_table(path, "study", StudyError), str(path))


def study_of(table: Mapping[str, Any], source: str) -> Study:
    """The study in a table. Raises StudyError, which names its source."""
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        text = explain(error).replace("docs/scenario.md", "docs/studies.md")
        raise StudyError(f"{source}: {text}") from error


def study_path(name_or_path: str) -> Path:
    """The path of a study of the library, or of a TOML file. Raises StudyError."""
    return find(name_or_path, STUDIES, "study", StudyError)


def plan_study(
    path: Path, *, with_data: bool, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> Plan:
    """Every cell of the study in `path`. seeds: replace the study's seeds. Other arguments: see plan_of."""
    study = read_study(path)
    if seeds is not None:
        study = study_of(study.model_dump() | {"seeds": list(seeds)}, "--seeds")
    return plan_of(study, path, with_data=with_data, overrides=overrides)


def plan_of(study: Study, path: Path, *, with_data: bool, overrides: Sequence[str] = ()) -> Plan:
    """Every cell of a study, resolved.

    Args:
        study: The study.
        path: Its file, for messages. Paths of base scenarios are relative to its folder.
        with_data: Whether there is a data folder. Without one, variants that need data are skipped.
        overrides: `KEY=VALUE` for all cells.

    Raises:
        StudyError, ScenarioError: The study or a cell is wrong; the message names the cell.
    """
    axes: list[list[tuple[str, str, Variant]]] = []
    left_out = []
    for axis, variants in study.variants.items():
        kept = [(axis, label, v) for label, v in variants.items() if with_data or not v.needs_data]
        left_out += [f"{axis}={label}" for label, v in variants.items() if v.needs_data and not with_data]
        if not kept:
            raise StudyError(f"{path}: all variants of {axis!r} need data; give --data-root")
        axes.append(kept)
    for key, values in study.values().items():
        axes.append([(key, label_of(value), Variant(set={key: value})) for value in values])
    cells = [
        cell_of(study, path, choice, seed, overrides)
        for choice in itertools.product(*axes)
        for seed in study.seeds
    ]
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise StudyError(
            f"{path}: two cells would have the name {duplicate(names)!r}; make their labels more different"
        )
    return Plan(study, tuple(cells), tuple(left_out))


def cell_of(
    study: Study,
    path: Path,
    choice: Sequence[tuple[str, str, Variant]],
    seed: int,
    overrides: Sequence[str],
) -> Cell:
    """One combination under one seed. The study sets keys first, then its axes in order, then overrides."""
    labels = {axis: label for axis, label, _ in choice}
    words = [re.sub(r"[^A-Za-z0-9.-]+", "-", label) for label in labels.values()]
    name = "_".join([*words, f"seed-{seed}"])
    bases = [variant.scenario for _, _, variant in choice if variant.scenario is not None]
    source = scenario_path(bases[-1] if bases else study.scenario, path.parent)
    table = read_table(source, "scenario", ScenarioError)
    table["seed"] = seed
    for settings in (study.set, *(variant.set for _, _, variant in choice)):
        for key, value in flat(settings):
            set_key(table, key, value, f"{path}: cell {name}: set {key}")
    for override in overrides:
        apply_override(table, override)
    if table["seed"] != seed:  # all seeds would be one, and their differences would look certain
        raise StudyError(
            f"{path}: seed: expected seeds = [...] or --seeds, found it in set or --set; move it there"
        )
    return Cell(name, labels, seed, parse_scenario(table, f"{path}: cell {name}"))


def chosen(plan: Plan, only: Sequence[str]) -> tuple[Cell, ...]:
    """The cells whose labels are among those of `only`: each AXIS=LABEL,LABEL.

    Raises StudyError: an item has another form, or names an axis or label that the study does not have.
    """
    labels, wanted = plan.study.labels(), dict[str, set[str]]()
    for item in only:
        axis, _, names = item.partition("=")
        if axis not in labels:
            raise StudyError(f"--only {item}: expected AXIS=LABEL, the axis one of {', '.join(labels)}")
        for name in names.split(","):
            if name not in labels[axis]:
                raise StudyError(
                    f"--only {item}: expected labels of {', '.join(labels[axis])}, found {name!r}"
                )
        wanted.setdefault(axis, set()).update(names.split(","))
    return tuple(
        cell for cell in plan.cells if all(cell.labels[axis] in names for axis, names in wanted.items())
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) pairs: `training.epochs = 3` is a nested table in TOML and one key here."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def label_of(value: Any) -> str:
    """The label of a value in tables and names."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def duplicate(words: Sequence[str]) -> str:
    """The first word that occurs twice."""
    return next(word for word in words if words.count(word) > 1)
