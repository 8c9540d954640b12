"""The base of every table that people write and both sides must read alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
)


class Section(BaseModel):
    """A table of a scenario or policy: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def known_keys(section: type[S], settings: Mapping[str, Any]) -> S:
    """A section with those of `settings` that it has a key for. Raises ValidationError for wrong values."""
    return section.model_validate({key: settings[key] for key in settings if key in section.model_fields})


class Named(Protocol):
    """An entry of a registry that has a section of its own."""

    @property
    def section(self) -> type[Section]: ...


@dataclass(frozen=True)
class OneOf:
    """Annotation of a string that is a name of a registry, looked up when it is read.

    names: what there is, so that what is registered later counts.
    """

    names: Callable[[], Collection[str]]

    def check(self, name: str) -> str:
        """The name. Raises ValueError for an unknown one."""
        if name not in self.names():
            raise ValueError(f"expected one of {', '.join(map(repr, self.names()))}, found {name!r}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return AfterValidator(self.check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names())}


@dataclass(frozen=True)
class ByName:
    """Annotation of a table whose keys depend on a name in it: `router = {kind = "vae", beta = 1}`.

    key: where the name stands. default: the name where it does not. registry: sections by name, looked up
    when a table is read, so that what is registered later counts.
    """

    key: str
    default: str
    registry: Callable[[], Mapping[str, Named]]

    def read(self, table: Any) -> Section:
        """The table as the section that its name asks for.

        Raises:
            ValidationError: an unknown name, a key that belongs to another name, or a wrong value.
        """
        if isinstance(table, Section):
            return table
        if not isinstance(table, Mapping):
            raise ValueError(f"expected a table, found {table!r}")
        name, entries = table.get(self.key, self.default), self.registry()
        if not isinstance(name, str) or name not in entries:
            raise wrong(self.key, name, f"expected one of {', '.join(sorted(entries))}, found {name!r}")
        section = entries[name].section
        for key in table:
            owners = [other for other in entries if key in entries[other].section.model_fields]
            if owners and name not in owners:
                belongs = f"belongs to {self.key} {' or '.join(owners)}"
                raise wrong(key, table[key], f"{belongs}, found {self.key} {name!r}; leave it out")
        return section.model_validate({self.key: name, **table})

    def default_section(self) -> Any:
        """The section of the default name, with its default values."""
        return self.read({})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return PlainValidator(self.read).__get_pydantic_core_schema__(Any, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        alternatives = []
        for name, entry in self.registry().items():
            keys = handler(entry.section.__pydantic_core_schema__)
            named = {"properties": {self.key: {"const": name}}, "allOf": [keys]}
            alternatives.append(named if name == self.default else named | {"required": [self.key]})
        return {"anyOf": alternatives}


def wrong(key: str, value: Any, fault: str) -> ValidationError:
    """The error of one key."""
    details: Any = {"type": "value_error", "loc": (key,), "input": value, "ctx": {"error": ValueError(fault)}}
    return ValidationError.from_exception_data("Section", [details])
