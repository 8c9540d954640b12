"""Find a scenario by path, or by name in the library of scenarios that come with the product."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_scenario
from casam_core.errors import CasamError, ScenarioError, did_you_mean

LIBRARY = Path(__file__).resolve().parents[2] / "scenarios" / "library"


def library_names() -> list[str]:
    """Names of the library's scenarios, sorted."""
    return names_in(LIBRARY)


def names_in(folder: Path) -> list[str]:
    """Names of the TOML files in a folder and in those below it, without the suffix, sorted."""
    return sorted(path.stem for path in folder.rglob("*.toml"))


def find(
    name_or_path: str, folder: Path, what: str, refuse: type[CasamError], beside: Path | None = None
) -> Path:
    """Find a TOML file by its name in `folder` or by its path.

    Args:
        name_or_path: a name in `folder`, or a path.
        what: the kind of file, for the error message.
        beside: the folder that relative paths start from; by default the working directory.

    Raises:
        refuse: it is neither; the message lists the names in `folder`.
    """
    for found in folder.rglob("*.toml"):
        if found.stem == name_or_path:
            return found
    path = (beside or Path()) / Path(name_or_path).expanduser()
    if path.suffix != ".toml" and not path.exists():
        known = names_in(folder)
        raise refuse(
            f"{what} {name_or_path!r}: expected a .toml file or one of {', '.join(known)}"
            f"{did_you_mean(name_or_path, known)}"
        )
    return path


def scenario_path(name_or_path: str, beside: Path | None = None) -> Path:
    """The path of a scenario of the library or of a TOML file. Raises ScenarioError."""
    return find(name_or_path, LIBRARY, "scenario", ScenarioError, beside)


def resolve_scenario(name_or_path: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario of the library or a TOML file, with `KEY=VALUE` overrides. Raises ScenarioError."""
    return read_scenario(scenario_path(name_or_path), overrides)
