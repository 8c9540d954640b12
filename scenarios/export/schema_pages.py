"""Texts generated from schemas: a policy file to fill in, and parts of the documentation.

In a clone, generate the pages again with

    python -m scenarios.export.schema_pages

It writes all of docs/scenario.md and docs/site-file.md, and the table of summary.json in
docs/run-folder.md.
"""

from __future__ import annotations

import importlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.section import ByName
from casam_core.config.site_file import SiteFile
from server.run.summary_schema import Summary

HEAD = """# Scenario reference

A scenario is a TOML file: one experiment. Unknown keys are refused. Every key can be changed from the
command line with `--set KEY=VALUE`, with dots between tables and numbers for list items, e.g.
`--set training.epochs=3` or `--set institutions.0.data.polyp.images=12`.

This page is made from the schema (`python -m scenarios.export.schema_pages`).
"""

SUMMARY_TABLE = re.compile(r"(?<=## summary\.json\n\n).*?(?=\n\nIoU is measured)", re.DOTALL)
SUMMARY_HEAD = """Scores are fractions; `ff_iou` alone is in points (hundredths). A missing value is null.
This table is made from the schema (`server/run/summary_schema.py`).

| key | meaning |
| --- | --- |"""


def scenario_page() -> str:
    """The text of docs/scenario.md."""
    return "\n".join([HEAD, *sections(Scenario, ""), ""])


SITE_HEAD = """# Site file reference

The site file (`site.toml`) is an institution's own description of its images, and of how it approves
scenarios. `casam site init FOLDER` writes one, `casam data check --site FILE` reads it, and `site` in
`node.toml` names it
([deployment.md](deployment.md#describe-the-images)). A scenario only names a task: no path, pattern, limit
or share of a scenario reaches a real site's images. In a simulation the scenario's `data` tables stand in
its place.

This page is made from the schema (`python -m scenarios.export.schema_pages`).
"""


def site_file_page() -> str:
    """The text of docs/site-file.md."""
    return "\n".join([SITE_HEAD, *sections(SiteFile, ""), ""])


def run_folder_page(page: str) -> str:
    """docs/run-folder.md with the table of summary.json generated again."""
    return SUMMARY_TABLE.sub(lambda found: "\n".join([SUMMARY_HEAD, *summary_rows(Summary)]), page)


def summary_rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One row per key with a description. A nested table without a description is shown key by key."""
    for name, field in model.model_fields.items():
        key, nested = f"{prefix}{field.alias or name}", nested_model(field.annotation)
        if field.description is None and nested is not None:
            yield from summary_rows(nested[0], f"{key}.")
        else:
            yield f"| `{key}` | {' '.join((field.description or '').split())} |"


def sections(model: type[BaseModel], prefix: str, by_name: ByName | None = None) -> Iterator[str]:
    """One heading and table for `model`, then the same for the tables inside it.

    by_name: how the table gets more keys for some names.
    """
    yield f"## {prefix or 'Top level'}\n"
    yield from table(model, model.model_fields, by_name)
    for name, section in by_name.sections().items() if by_name else ():
        own = {key: field for key, field in section.model_fields.items() if key not in model.model_fields}
        if by_name and own:
            yield f"### {prefix} with {by_name.key} = {name}\n"
            yield from table(section, own)
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested is not None:
            inside, path = nested
            yield from sections(inside, f"{prefix}{'.' if prefix else ''}{name}{path}", by_name_of(field))


def table(
    model: type[BaseModel], fields: Mapping[str, FieldInfo], by_name: ByName | None = None
) -> Iterator[str]:
    """The model's docstring and a table of some of its keys."""
    yield f"{(model.__doc__ or '').strip().splitlines()[0]}\n"
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in fields.items():
        default = f"`{by_name.default}`" if by_name and name == by_name.key else default_of(field)
        yield f"| `{name}` | {type_name(field.annotation)} | {default} | {meaning(field)} |"
    yield ""


def by_name_of(field: FieldInfo) -> ByName | None:
    """The rule by which the field's tables get more keys for some names; None without one."""
    inner = [rule for argument in typing.get_args(field.annotation) for rule in typing.get_args(argument)]
    return next((rule for rule in (*field.metadata, *inner) if isinstance(rule, ByName)), None)


def nested_model(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """(model, path to its keys) of a field that holds tables; None for other fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return nested_model(arguments[0])
    if origin is list and (found := nested_model(arguments[0])):
        return found[0], "[]"
    if origin is dict and (found := nested_model(arguments[1])):
        return found[0], ".TASK"
    return None


def type_name(annotation: Any) -> str:
    """A type in words for readers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if nested_model(annotation) is not None:
        if origin is list:
            return "list of tables"
        return "tables by task" if origin is dict else "table"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "none"}[
        annotation
    ]


def default_of(field: FieldInfo) -> str:
    """The default in words, or `required`."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel) or any(isinstance(rule, ByName) for rule in field.metadata):
        return "see below"
    if field.default_factory is not None:
        return "empty"
    if field.default is None:
        return "none"
    text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return f"`{text}`" if text else "empty"


def meaning(field: FieldInfo) -> str:
    """The description and the allowed range."""
    limits = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    ranges = [
        f"{word} {getattr(rule, name)}"
        for rule in field.metadata
        for name, word in limits.items()
        if getattr(rule, name, None) is not None
    ]
    text = field.description or ""
    if found := re.fullmatch(r"A name in (\S+)\.(\w+)\.", text):
        names = getattr(importlib.import_module(found[1]), found[2])
        text = f"One of {', '.join(f'`{name}`' for name in names)}."
    return f"{text} ({', '.join(ranges)})".strip() if ranges else text


POLICY_HEAD = """\
# The policy of {institution}. The institution owns this file: a server can ask, this file decides.
# A key behind a # has its default value; remove the # to change it. docs/threat-model.md lists what is sent.
# In a simulation, a scenario sets the same keys under `policy` of an institution.
"""


def policy_text(institution: str = "this institution") -> str:
    """A policy file with every key, its default and its meaning. Unchanged, it is the default policy."""
    return "\n".join([POLICY_HEAD.format(institution=institution), *policy_lines(Policy, ""), ""])


def policy_lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """One comment and one key per field, then the tables, whose keys are written with dots."""
    tables: list[tuple[str, type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        if (inside := nested_model(field.annotation)) is not None:
            about = field.description or (inside[0].__doc__ or "").strip().splitlines()[0]
            tables.append((name, inside[0], about))
            continue
        # An ellipsis, because readers do not confuse it with a value.
        default = "..." if field.default is None else quoted(field.default)
        told = f"{meaning(field)} [{type_name(field.annotation).replace('`', '')}]"
        yield f"# {told.strip()}"
        yield f"# {prefix}{name} = {default}"
    for name, table, about in tables:
        yield f"\n## {name}: {about}"
        yield from policy_lines(table, f"{prefix}{name}.")


def quoted(value: Any) -> str:
    """A value in TOML. A JSON string is a TOML string if DEL is escaped, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


if __name__ == "__main__":
    docs = Path("docs")
    (docs / "scenario.md").write_text(scenario_page())
    (docs / "site-file.md").write_text(site_file_page())
    (docs / "run-folder.md").write_text(run_folder_page((docs / "run-folder.md").read_text()))
