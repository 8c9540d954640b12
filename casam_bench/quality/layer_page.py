"""Generated parts of docs/results.md and first-signs.md: ways of learning, private layers, clicks, finders.

In a clone, after `casam bench layer-seconds`, `private-layers`, `clicks` or `finder` has written its file,

    cp layer-seconds.csv private-layers.jsonl clicks.csv finder.csv docs/figures/
    python -m casam_bench.quality.layer_page

writes the tables between the page's marks, and the pictures beside the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import vl_convert

from casam_bench.bench import read_csv
from casam_bench.privacy.private_layers import Cells, table_of
from casam_bench.quality import clicks, finder_quality
from casam_bench.quality.layer_tables import Row, standings, table_of_tasks, table_of_ways
from casam_core.files import write_atomic

DOCS = Path(__file__).parents[2] / "docs"

EVIDENCE = 5
"""Fewer seeds are a hint, and have no place in the tables of docs/results.md."""


def tables(rows: Sequence[Row]) -> str:
    """The tables of all kinds of tasks. Ways are compared with the first one of the file, on the same seeds.

    A way has no line for a budget that it has with fewer than EVIDENCE seeds.
    """
    parts = []
    for kind in dict.fromkeys(row.kind for row in rows):
        seeds: dict[tuple[str, float], set[int]] = {}
        for row in rows:
            if row.kind == kind:
                seeds.setdefault((row.way, row.seconds), set()).add(row.seed)
        shown = {key: own for key, own in seeds.items() if len(own) >= EVIDENCE}
        if not shown:
            continue
        shared = set.intersection(*shown.values())
        own = [r for r in rows if r.kind == kind and (r.way, r.seconds) in shown and r.seed in shared]
        parts.append(f"**{kind} tasks: {len({row.task for row in own})}, seeds: {len(shared)}**")
        parts += [table_of_ways(own, rows[0].way), table_of_tasks(own)]
    return "\n\n".join(parts)


def picture(rows: Sequence[Row]) -> str:
    """SVG: IoU over processor seconds and over bytes, a colour per way, over the pairs that all ways have."""
    points = [
        {"kind": kind, "way": s.way, "seconds": s.seconds, "bytes": s.bytes, "IoU": s.iou}
        for kind in dict.fromkeys(row.kind for row in rows)
        for s in standings(of_shared_places([row for row in rows if row.kind == kind]), rows[0].way)
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


def picture_of_clicks(rows: Sequence[clicks.Row]) -> str:
    """SVG: IoU over clicks, a panel per kind of tasks and a box or none, a colour per layer."""
    points = [
        {
            "layer": layer,
            "panel": f"{kind}, {'a box first' if clicks.WAYS[way].box else 'clicks only'}",
            "earlier mask": "a prompt, too" if clicks.WAYS[way].mask else "forgotten",
            "clicks": k,
            "IoU": clicks.mean_of(own, f"iou_{k}"),
        }
        for kind, layer, way, own in clicks.grouped(rows)
        for k in range(clicks.CLICKS + 1)
        if k or clicks.WAYS[way].box
    ]
    chart = (
        alt.Chart(alt.Data(values=points))  # type: ignore[no-untyped-call]
        .mark_line(point=True)
        .encode(
            x=alt.X("clicks:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("IoU:Q"),
            color=alt.Color("layer:N"),
            strokeDash=alt.StrokeDash("earlier mask:N", legend=alt.Legend(symbolType="stroke")),
        )
        .properties(width=260, height=200)
        .facet(alt.Facet("panel:N", title=None), columns=2)
    )
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return svg


def of_shared_places(rows: Sequence[Row]) -> list[Row]:
    """The rows of tasks and seeds that every way has after every budget."""
    places: dict[tuple[str, float], set[tuple[str, int]]] = {}
    for row in rows:
        places.setdefault((row.way, row.seconds), set()).add(row.place)
    shared = set.intersection(*places.values())
    return [row for row in rows if row.place in shared]


def filled(page: str, name: str, part: str) -> str:
    """The page with this part between the marks of that name. Raises ValueError if it has no such marks."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    text, found = re.subn(f"(?<={start}).*?(?={end})", lambda old: part, page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"expected the marks of {name} once on the page, found them {found} times")
    return text


def publish(page: str, name: str, part: str, svg: str = "") -> None:
    """Put a part between the marks of that name on a page of docs/, and its picture into figures/NAME.svg."""
    path = DOCS / page
    write_atomic(path, filled(path.read_text(encoding="utf-8"), name, part).encode())
    if svg:
        write_atomic(DOCS / "figures" / f"{name}.svg", svg.encode())


def main() -> None:
    rows = read_csv(Row, DOCS / "figures" / "layer-seconds.csv")
    clicked = read_csv(clicks.Row, DOCS / "figures" / "clicks.csv")
    private = Cells(DOCS / "figures" / "private-layers.jsonl")
    publish("results.md", "layer-seconds", tables(rows), picture(rows))
    publish("first-signs.md", "private-layers", table_of(private))
    publish("results.md", "clicks", clicks.tables(clicked), picture_of_clicks(clicked))
    finders = read_csv(finder_quality.Row, DOCS / "figures" / "finder.csv")
    publish("results.md", "finder", finder_quality.tables(finders))


if __name__ == "__main__":
    main()
