"""Read scenario and policy files. Each error names the file, the key, the expected and the found value."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.section import S, Section
from casam_core.errors import CasamError, PolicyError, ScenarioError, did_you_mean, plain

Table = dict[str, Any]


def read_table(path: Path, what: str, refuse: type[CasamError]) -> Table:
    """The content of a TOML file, or of a JSON file that a run wrote. Raises `refuse`.

    what: names the file in messages.
    """
    try:
        if path.suffix == ".json":
            return as_table(json.loads(path.read_text(encoding="utf-8")))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise refuse(f"{path}: no such {what} file; check the path") from error
    except ValueError as error:  # both parsers and the decoder raise subclasses of it
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise refuse(f"{path}: not valid {kind}: {error}") from error
    except OSError as error:
        raise refuse(f"{path}: cannot be read: {error.strerror}") from error


def read_section(path: Path, section: type[S], what: str, refuse: type[CasamError]) -> S:
    """The file as a section, which is immutable: a site reads its files again for every message, and a
    process parses equal texts once. Raises `refuse`, and ValidationError for a wrong key or value. what:
    names the file in messages."""
    try:
        found: S = _parsed(section, path.suffix, path.read_text(encoding="utf-8"))
        return found
    except ValidationError:
        raise
    except (ValueError, OSError):
        return section.model_validate(read_table(path, what, refuse))  # which says what is wrong


@lru_cache(maxsize=64)
def _parsed(section: type[Section], suffix: str, text: str) -> Any:
    return section.model_validate(json.loads(text) if suffix == ".json" else tomllib.loads(text))


def as_table(content: Any) -> Table:
    """The content, typed as a table. Raises ValueError if it is not an object."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return content


def read_policy(path: Path) -> Policy:
    """Read the policy of an institution. Raises PolicyError."""
    try:
        return read_section(path, Policy, "policy", PolicyError)
    except ValidationError as error:
        raise PolicyError(f"{path}: {explain(error)}") from error


def read_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read the scenario in `path` and apply `KEY=VALUE` overrides. Raises ScenarioError."""
    table = read_table(path, "scenario", ScenarioError)
    for override in overrides:
        apply_override(table, override)
    return parse_scenario(table, " --set ".join([str(path), *overrides]))


def parse_scenario(table: Table, source: str) -> Scenario:
    """Validate a table. Raises ScenarioError: one line with the file, the first wrong key and its value."""
    try:
        return Scenario.model_validate(table)
    except ValidationError as error:
        raise ScenarioError(f"{source}: {explain(error, table)}") from error


def explain(error: ValidationError, table: Any = None) -> str:
    """One line about the first fault, and the number of further faults. With the `table` that was read, an
    item of a list has its name in the line, as in `set_key`, and not its number."""
    faults = error.errors(include_url=False)
    first = min(faults, key=lambda fault: fault["type"] == "missing")  # a mistyped key is missing as well
    key = ".".join(_named(first["loc"], table))
    if first["type"] == "extra_forbidden":
        bases: list[type[Section]] = [Section, *Section.__subclasses__()]
        known = {name for base in bases for section in base.__subclasses__() for name in section.model_fields}
        near = "" if first["loc"][-1] in known else did_you_mean(str(first["loc"][-1]), sorted(known))
        text = f"unknown key {key!r}; docs/scenario.md lists all keys{near}"
    elif first["type"] == "missing":
        text = f"key {key!r} is missing"
    elif first["type"] == "value_error":
        text = (f"{key}: " if key else "") + str(first["ctx"]["error"])
    else:
        text = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return text + more


def _named(places: Sequence[int | str], table: Any) -> Iterator[str]:
    """The parts of a key, each number replaced by the `name` of its item where `table` has one."""
    for place in places:
        items = dict(enumerate(table)) if isinstance(table, list) else table
        table = items.get(place) if isinstance(items, dict) else None
        name = table.get("name") if isinstance(place, int) and isinstance(table, dict) else None
        yield plain(str(name or place))


def apply_override(table: Table, override: str) -> None:
    """Set one key from `KEY=VALUE`, e.g. `training.epochs=3`, in place (see `set_key`).

    The value is parsed as TOML; if that fails, it is a text. Raises ScenarioError.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ScenarioError(f"--set: expected KEY=VALUE, found {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    set_key(table, key.strip(), value, f"--set {override}")


def set_key(table: Table, key: str, value: Any, source: str) -> None:
    """Set one key in place: names with dots, e.g. `institutions.heart-centre.data.polyp.images`.

    A part of the key can be a number or a `name` to select an item of a list, or `*` to select every item of
    a list or table. source: named in the error. Raises ScenarioError.
    """
    *parents, leaf = key.split(".")
    places: list[Any] = [table]
    for part in parents:
        places = [inner for place in places for inner in _steps(place, part, source)]
    for place in places:
        if isinstance(place, list):
            for number in _numbers(place, leaf, source):
                place[number] = copy.deepcopy(value)
        elif not isinstance(place, dict):
            raise ScenarioError(f"{source}: expected a table that can hold {leaf!r}, found a single value")
        elif leaf == "*":
            place.update({name: copy.deepcopy(value) for name in place})
        else:
            place[leaf] = copy.deepcopy(value)


def _steps(here: Any, part: str, source: str) -> list[Any]:
    """The values one level below `here`; a missing table is created."""
    if isinstance(here, dict):
        return list(here.values()) if part == "*" else [here.setdefault(part, {})]
    if isinstance(here, list):
        return [here[number] for number in _numbers(here, part, source)]
    raise ScenarioError(f"{source}: {part!r} leads nowhere in the scenario")


def _numbers(items: list[Any], part: str, source: str) -> list[int]:
    """The positions of the items that `part` selects. Raises ScenarioError if there are none."""
    found = [
        number
        for number, item in enumerate(items)
        if part in ("*", str(number)) or (isinstance(item, dict) and item.get("name") == part)
    ]
    if not found:
        names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
        known = plain(", ".join(names or map(str, range(len(items))))) or "no item"
        raise ScenarioError(f"{source}: expected one of {known}, found {part!r}{did_you_mean(part, names)}")
    return found
