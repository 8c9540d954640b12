"""A registry of parts that a scenario can name, such as forms and routers.

A scenario needs a part's name and keys; only a computation needs its code, and with it torch, whose import
takes seconds. So a registry knows the names and keys at once and imports the code at the first look at an
entry.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from casam_core.config.section import Section


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
