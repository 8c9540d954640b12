"""docs/defaults.md lists defaults with the figures that chose them; its values are those of the schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from casam_core.config.named_parts import BY_FORM, BY_KIND
from casam_core.config.scenario import Scenario

PAGE = Path(__file__).resolve().parents[3] / "docs" / "defaults.md"
ROW = re.compile(
    r"^\| `(?P<table>\w+)\.(?P<key>\w+)`(?: \((?P<name>\w+)\))? \| `(?P<value>[^`]+)` \|", re.MULTILINE
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE.read_text())]


def default_of(table: str, key: str, name: str | None) -> Any:
    """The default of `table.key`. name: of the kind or form that has this key, if not the default one."""
    by_name = {"alignment": BY_FORM, "router": BY_KIND}.get(table)
    if by_name is None:
        return Scenario.model_fields[table].default.model_dump()[key]
    section = by_name.default_section() if name is None else by_name.sections()[name]()
    return getattr(section, key)


def test_every_row_of_the_table_is_read() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(lines) > 5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['table']}.{row['key']}")
def test_the_page_has_the_default_of_the_schema(row: dict[str, str]) -> None:
    assert str(default_of(row["table"], row["key"], row["name"])) == row["value"]
