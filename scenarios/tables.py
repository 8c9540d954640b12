"""Small CSV tables that grow row by row and are whole at every moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from casam_core.errors import RunError
from casam_core.files import write_atomic

Row = dict[str, str]


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows that are there. Raises RunError for a table with other columns."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise RunError(f"{path} has other columns than this version writes; choose another --out")
        return list(reader)


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """The table, whole or as it was."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
