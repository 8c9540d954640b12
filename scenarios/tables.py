"""Small tables: as lines of text, and as CSV that grows row by row and is whole at every moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from casam_core.errors import RunError
from casam_core.files import write_atomic

Row = dict[str, str]


def plain_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of left-aligned columns; a table drawn to a width would cut digests, and scripts read."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


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
