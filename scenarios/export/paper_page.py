"""The generated part of docs/results.md: all methods in one stream, from the study paper-tables.

In a clone, after `casam study paper-tables --data-root FOLDER --out DIR` has finished all seeds of an order,

    python -m scenarios.export.paper_page DIR

writes docs/figures/paper-tables.csv (a row per finished run) and paper-tables-trials.csv (a row per trial of
a learning rate), and from these files alone the tables between the page's marks and
docs/figures/paper-tables.svg. Without DIR it makes tables and picture from the files again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from casam_bench.quality.layer_page import DOCS, publish
from casam_core.errors import RunInputError
from casam_core.files import write_atomic
from scenarios.export.paper_tables import COSTS, QUALITY, ROUTING, complete, part_of_page

MARK = "paper-tables"
CSV = DOCS / "figures" / f"{MARK}.csv"
TRIALS_CSV = DOCS / "figures" / f"{MARK}-trials.csv"


def tidy(folder: Path) -> pd.DataFrame:
    """The finished runs of a study's folder: method, order, seed, figures. Raises RunInputError."""
    return finished(folder, MARK, ["method", "order", "seed", "learning_rate", *QUALITY, *ROUTING, *COSTS])


def trials_of(folder: Path) -> pd.DataFrame:
    """The finished trials of a study's learning rates. Raises RunInputError."""
    return finished(folder / "tuning", MARK, ["method", "learning_rate", "last_iou"])


def finished(folder: Path, study: str, columns: Sequence[str]) -> pd.DataFrame:
    """These columns of the finished runs in a study's folder. Raises RunInputError."""
    path = folder / "results.csv"
    if not path.is_file():
        raise RunInputError(f"{folder}: expected a folder of the study {study}, found no results.csv")
    rows = pd.read_csv(path)
    if missing := [column for column in columns if column not in rows.columns]:
        raise RunInputError(f"{path}: expected the study {study}, found no column {', '.join(missing)}")
    return rows[rows["status"] == "finished"][list(columns)].reset_index(drop=True)


def picture(rows: pd.DataFrame) -> str:
    """SVG: IoU at the end over processor seconds and over bytes; a point per method, order and rate."""
    axes = ["method", "order", "learning_rate"]
    means = complete(rows, axes).groupby(axes, sort=False, dropna=False)
    points = means[["last_iou", "learning_seconds", "bytes_up"]].mean().reset_index(["method", "order"])
    data = alt.Data(values=points.to_dict("records"))  # type: ignore[no-untyped-call]
    across = (  # frozen SAM learns in no second, which a logarithm cannot show
        ("learning_seconds", alt.Scale(type="symlog"), "processor seconds of learning"),
        ("bytes_up", alt.Scale(type="log"), "bytes that institutions sent"),
    )
    sides = [
        alt.Chart(data)
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X(f"{x}:Q", scale=scale, title=title),
            y=alt.Y("last_iou:Q", scale=alt.Scale(zero=False), title="IoU at the end"),
            color=alt.Color("method:N"),
            shape=alt.Shape("order:N"),
        )
        .properties(width=260, height=220)
        for x, scale, title in across
    ]
    svg: str = vl_convert.vegalite_to_svg(alt.hconcat(*sides).to_dict())
    return svg


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        for path, made in ((CSV, tidy(folder)), (TRIALS_CSV, trials_of(folder))):
            write_atomic(path, made.to_csv(index=False, float_format="%.6g").encode())
    rows = pd.read_csv(CSV)
    publish("results.md", MARK, part_of_page(rows, pd.read_csv(TRIALS_CSV)), picture(rows))


if __name__ == "__main__":
    try:
        main()
    except RunInputError as error:
        sys.exit(f"error: {error}")
