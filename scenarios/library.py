"""The scenarios that come with the product, and finding one by name or path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casam_core.errors import ScenarioError
from casam_core.scenario import Scenario
from casam_core.toml import read_scenario

LIBRARY = Path(__file__).parent / "library"


def library_names() -> list[str]:
    """Names of the library, sorted."""
    return sorted(path.stem for path in LIBRARY.glob("*.toml"))


def resolve_scenario(name_or_path: str, overrides: Sequence[str] = ()) -> Scenario:
    """A scenario of the library or a TOML file, with `KEY=VALUE` overrides. Raises ScenarioError."""
    if name_or_path in library_names():
        return read_scenario(LIBRARY / f"{name_or_path}.toml", overrides)
    path = Path(name_or_path).expanduser()
    if path.suffix != ".toml" and not path.exists():
        raise ScenarioError(
            f"scenario {name_or_path!r}: expected a .toml file or one of " + ", ".join(library_names())
        )
    return read_scenario(path, overrides)
