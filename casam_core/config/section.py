"""The base class of scenario and policy tables, and the registries of parts that they name.

A scenario needs a part's name and keys; only a computation needs its code, and with it torch, whose import
takes seconds. So a registry knows the names and keys at once and imports the code at the first look at an
entry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    StringConstraints,
    ValidationError,
)

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]  # SHA-256


class Section(BaseModel):
    """A table of a scenario or policy. It refuses unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def known_keys(section: type[S], settings: Mapping[str, Any]) -> S:
    """A section from `settings`, without the unknown keys. Raises ValidationError for invalid values."""
    return section.model_validate({key: settings[key] for key in settings if key in section.model_fields})


@dataclass(frozen=True)
class OneOf:
    """Annotation of a string that must be a name of a registry.

    names: called at every check, so that names registered later are valid.
    """

    names: Callable[[], Collection[str]]

    def check(self, name: str) -> str:
        """The name itself. Raises ValueError for an unknown name."""
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

    key: the key of the name. default: the name of a table without that key. sections: by name; called
    at every reading, so that names registered later are valid.
    """

    key: str
    default: str
    sections: Callable[[], Mapping[str, type[Section]]]

    def read(self, table: Any) -> Section:
        """The table as the section of its name.

        Raises:
            ValidationError: an unknown name, a key of another name, or an invalid value.
        """
        if isinstance(table, Section):
            return table
        if not isinstance(table, Mapping):
            raise ValueError(f"expected a table, found {table!r}")
        name, sections = table.get(self.key, self.default), self.sections()
        if not isinstance(name, str) or name not in sections:
            raise wrong(self.key, name, f"expected one of {', '.join(sorted(sections))}, found {name!r}")
        section = sections[name]
        for key in table:
            owners = [other for other in sections if key in sections[other].model_fields]
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
        for name, section in self.sections().items():
            keys = handler(section.__pydantic_core_schema__)
            named = {"properties": {self.key: {"const": name}}, "allOf": [keys]}
            alternatives.append(named if name == self.default else named | {"required": [self.key]})
        return {"anyOf": alternatives}


def wrong(key: str, value: Any, fault: str) -> ValidationError:
    """A ValidationError for one key. fault: what was expected."""
    details: Any = {"type": "value_error", "loc": (key,), "input": value, "ctx": {"error": ValueError(fault)}}
    return ValidationError.from_exception_data("Section", [details])


class Named(Protocol):
    """An entry of a registry: a dataclass, with its own section of a scenario."""

    @property
    def section(self) -> type[Any]: ...


E = TypeVar("E", bound=Named)


class Registry(MutableMapping[str, E]):
    """Entries by name, in the order of their declaration.

    home: the module whose dictionary ENTRIES has the entries of casam's own parts.
    sections: the keys in a scenario of these parts, by name.
    """

    def __init__(self, home: str, sections: Mapping[str, type[Section]]) -> None:
        self._home = home
        self._sections: dict[str, type[Section]] = dict(sections)
        self._entries: dict[str, E] = {}

    def sections(self) -> Mapping[str, type[Section]]:
        """The keys in a scenario of every part, by name. This imports no code."""
        return self._sections

    def __getitem__(self, name: str) -> E:
        if name in self._sections and name not in self._entries:
            entry = importlib.import_module(self._home).ENTRIES[name]
            self._entries[name] = replace(entry, section=self._sections[name])
        return self._entries[name]

    def __setitem__(self, name: str, entry: E) -> None:
        self._entries[name] = entry
        self._sections[name] = entry.section

    def __delitem__(self, name: str) -> None:
        del self._sections[name]
        self._entries.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._sections

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)
