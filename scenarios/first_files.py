"""The text of a first scenario and of a first policy, with a comment where a beginner would ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from casam_core.config.policy import Policy
from casam_core.config.scenario import NAME
from casam_core.errors import ScenarioError
from client.data.phantoms import PHANTOMS
from scenarios.commands.data_commands import guess_reader
from scenarios.schema_pages import meaning, nested_model, type_name

SITE = re.compile(rf"(?P<name>{NAME}):(?P<task>{NAME})=(?P<source>.+)")

POLICY_HEAD = """\
# What {institution} allows. The file is the institution's own: a server can ask, this file decides.
# A line behind a # stands at its default; remove the # to change it. docs/threat-model.md says what leaves.
# In a simulation the same keys stand in the scenario, below `policy` of an institution.
"""


@dataclass(frozen=True)
class SiteOrder:
    """One dataset of one institution. source: `phantom:MODALITY`, or a folder with its reader."""

    name: str
    task: str
    source: str
    reader: str
    unseen: bool = False

    @property
    def relative(self) -> bool:
        """Whether a run will ask where its folder lies."""
        return self.reader != "phantom" and not self.source.startswith(("/", "~"))


@dataclass(frozen=True)
class ScenarioOrder:
    """What `casam init` is to write; sites in the order in which their tasks are learned."""

    name: str
    sites: tuple[SiteOrder, ...]
    description: str = ""
    seed: int = 0
    epochs: int = 8


def parse_site(text: str, *, unseen: bool = False) -> SiteOrder:
    """From `heart-centre:cardiac=phantom:cardiac_mr` or `lab:nuclei=FOLDER`. Raises ScenarioError."""
    found = SITE.fullmatch(text)
    if found is None:
        raise ScenarioError(
            f"{text!r}: expected INSTITUTION:TASK=SOURCE with lower-case names, e.g. lab:nuclei=FOLDER or "
            "heart-centre:cardiac=phantom:cardiac_mr"
        )
    name, task, source = found["name"], found["task"], found["source"].strip()
    kind, _, modality = source.partition(":")
    if kind == "phantom":
        if modality not in PHANTOMS:
            raise ScenarioError(
                f"{text!r}: no phantom is called {modality!r}; expected one of {', '.join(PHANTOMS)}"
            )
        return SiteOrder(name, task, modality, "phantom", unseen)
    return SiteOrder(name, task, source, guess_reader(Path(source).expanduser()), unseen)


def scenario_text(order: ScenarioOrder) -> str:
    """A scenario file that `casam run` accepts, as far as its data do."""
    stream = list(dict.fromkeys(site.task for site in order.sites if not site.unseen))
    return "\n".join([*scenario_lines(order, stream), ""])


def scenario_lines(order: ScenarioOrder, stream: Sequence[str]) -> Iterator[str]:
    """Line by line."""
    root = " --data-root FOLDER" if any(site.relative for site in order.sites) else ""
    yield f"# Run it with: casam run THIS-FILE{root}"
    if root:
        yield "# FOLDER is where the relative paths below start from."
    yield "# Every key there is: docs/scenario.md. Change one for one run: --set training.epochs=3"
    yield "# Help in an editor: casam schema scenario > scenario.schema.json, and as first line of this file"
    yield "#   #:schema ./scenario.schema.json"
    yield f"name = {quoted(order.name)}"
    yield f"description = {quoted(order.description)}"
    yield f"seed = {order.seed}  # of splits, weights and phantoms; same seed, same figures"
    yield f"stream = [{', '.join(map(quoted, stream))}]  # tasks in the order they are learned"
    for name in dict.fromkeys(site.name for site in order.sites):
        yield from institution_lines([site for site in order.sites if site.name == name])
    yield "\n[alignment]  # what is learned per task, between SAM's encoder and decoder"
    yield 'form = "low_rank"'
    yield "rank = 8"
    yield "\n[training]"
    yield f"epochs = {order.epochs}  # passes over the training images; more is slower"
    yield "batch_images = 2"
    yield "instances = 4  # objects drawn per image and step"
    yield "\n[evaluation]"
    yield "max_instances = 16  # objects per test image that are measured"


def institution_lines(sites: Sequence[SiteOrder]) -> Iterator[str]:
    """One institution with its tasks."""
    yield "\n[[institutions]]"
    yield f"name = {quoted(sites[0].name)}"
    if sites[0].unseen:
        yield "unseen = true  # never trains; shows what images of unknown tasks suffer"
    for site in sites:
        if site.reader == "phantom":
            content = f'reader = "phantom", phantom = {quoted(site.source)}, images = 26'
        else:
            content = f"reader = {quoted(site.reader)}, path = {quoted(site.source)}"
        yield f"data.{site.task} = {{ {content}, limit = {{ train = 24, val = 6, test = 16 }} }}"
    yield '# policy.adapter.share = "never"  # its layer stays at home; more: docs/scenario.md'


def policy_text(institution: str = "this institution") -> str:
    """A policy file with every key, its default and its meaning; as it stands it is the default policy."""
    return "\n".join([POLICY_HEAD.format(institution=institution), *policy_lines(Policy, ""), ""])


def policy_lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """One comment and one key per field, then the tables, whose keys are written with dots."""
    tables: list[tuple[str, type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        if (inside := nested_model(field.annotation)) is not None:
            about = field.description or (inside[0].__doc__ or "").strip().splitlines()[0]
            tables.append((name, inside[0], about))
            continue
        # An ellipsis: no reader takes it for a value.
        default = "..." if field.default is None else quoted(field.default)
        told = f"{meaning(field)} [{type_name(field.annotation).replace('`', '')}]"
        yield f"# {told.strip()}"
        yield f"# {prefix}{name} = {default}"
    for name, table, about in tables:
        yield f"\n## {name}: {about}"
        yield from policy_lines(table, f"{prefix}{name}.")


def quoted(value: Any) -> str:
    """A TOML value; a JSON string is a TOML string once DEL is escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
