"""A policy file to fill in: every key with its default, what it means and what else it may be."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import tomli_w
from pydantic.fields import FieldInfo

from casam_core.config.policy import Policy
from casam_core.config.section import Section
from scenarios.schema_pages import meaning, nested_model, type_name

HEAD = """\
# What {institution} allows. This file is the institution's: servers read what it says, and never write it.
# A line behind a # stands at its default; remove the # to change it. docs/threat-model.md says what leaves.
"""


def policy_template(institution: str) -> str:
    """The file's text; as it stands it is the default policy."""
    return "\n".join([HEAD.format(institution=institution), *lines(Policy, "")])


def lines(model: type[Section], prefix: str) -> Iterator[str]:
    """One comment and one key per field, then the tables, whose keys are written with dots."""
    tables = []
    for name, field in model.model_fields.items():
        if (inside := nested_model(field.annotation)) is not None:
            about = field.description or (inside[0].__doc__ or "").strip().splitlines()[0]
            tables.append((name, about, typing.cast(type[Section], inside[0])))
            continue
        yield f"# {about_of(field)}"
        yield f"# {prefix}{name} = {default_of(field)}"
    for name, about, table in tables:
        yield f"\n## {name}: {about}"
        yield from lines(table, f"{prefix}{name}.")


def about_of(field: FieldInfo) -> str:
    """Meaning and type in one line."""
    return f"{meaning(field)} [{type_name(field.annotation).replace('`', '')}]".strip()


def default_of(field: FieldInfo) -> str:
    """As TOML; a key without a default is shown with an ellipsis, which no reader takes for a value."""
    if field.default is None:
        return "..."
    return tomli_w.dumps({"value": field.default}).removeprefix("value = ").strip()
