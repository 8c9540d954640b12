"""The part of docs/results.md about ways of learning, made from docs/figures/layer-seconds.csv.

In a clone, after `casam bench layer-seconds` has written its CSV file,

    cp layer-seconds.csv docs/figures/ && python -m casam_bench.quality.layer_page

writes the tables between the page's marks, and docs/figures/layer-seconds.svg.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import vl_convert

from casam_bench.quality.layer_tables import Row, read_rows, standings, table_of_tasks, table_of_ways
from casam_core.files import write_atomic

DOCS = Path(__file__).parents[2] / "docs"
MARKS = re.compile(r"(?<=<!-- layer-seconds -->\n).*?(?=\n<!-- end of layer-seconds -->)", re.DOTALL)


def tables(rows: Sequence[Row]) -> str:
    """The tables of all kinds of tasks. Ways are compared with the first one of the file."""
    default, parts = rows[0].way, []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        tasks = len({row.task for row in own})
        parts.append(f"**{kind} tasks: {tasks}, seeds: {len({row.seed for row in own})}**")
        parts += [table_of_ways(own, default), table_of_tasks(own, default)]
    return "\n\n".join(parts)


def picture(rows: Sequence[Row]) -> str:
    """SVG: IoU over processor seconds and over bytes, a colour per way."""
    points = [
        {"kind": kind, "way": s.way, "seconds": s.seconds, "bytes": s.bytes, "IoU": s.iou}
        for kind in dict.fromkeys(row.kind for row in rows)
        for s in standings([row for row in rows if row.kind == kind], rows[0].way)
    ]
    data = alt.Data(values=points)  # type: ignore[no-untyped-call]
    sides = [
        alt.Chart(data)
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X(f"{x}:Q", scale=alt.Scale(type="log"), title=title),
            y=alt.Y("IoU:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("way:N"),
            shape=alt.Shape("kind:N", title="tasks"),
        )
        .properties(width=260, height=220)
        for x, title in (("seconds", "processor seconds of training"), ("bytes", "bytes of the layer"))
    ]
    svg: str = vl_convert.vegalite_to_svg(alt.hconcat(*sides).to_dict())
    return svg


def main() -> None:
    rows = read_rows(DOCS / "figures" / "layer-seconds.csv")
    page = DOCS / "results.md"
    write_atomic(page, MARKS.sub(lambda found: tables(rows), page.read_text(encoding="utf-8")).encode())
    write_atomic(DOCS / "figures" / "layer-seconds.svg", picture(rows).encode())


if __name__ == "__main__":
    main()
