"""The library: the scenarios that come with the product. They are data: no code of `scenarios/` is needed."""

from __future__ import annotations

from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "scenarios" / "library"


def library_names() -> list[str]:
    """Names of the library's scenarios, sorted."""
    return names_in(LIBRARY)


def names_in(folder: Path) -> list[str]:
    """Names of the TOML files in a folder, without the suffix, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))
