"""The generated part of docs/ask.md: how well answers are calibrated.

In a clone, after `casam bench ask` has written ask.csv,

    cp ask.csv docs/figures/ && python -m casam_bench.quality.asking.ask_page

writes the tables between the page's marks, and docs/figures/ask.svg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import vl_convert
from scipy.stats import t

from casam_bench.bench import read_csv
from casam_bench.quality.asking.ask_tables import Row, answered, table_of
from casam_bench.quality.layer_page import DOCS, publish

CONFIDENCE = 0.9
"""Of the intervals in the rows."""

LEVELS = tuple(level / 20 for level in range(1, 20))


def needed_level(row: Row) -> float:
    """The smallest confidence whose Student interval would hold the full figure of a row that noise moves.

    The side of the interval that 0 or 1 did not cut gives its half.
    """
    half = max(row.noise_high - row.predicted, row.predicted - row.noise_low)
    free = row.draws - 1
    off = abs(row.full - row.predicted) / half * t.ppf((1 + CONFIDENCE) / 2, free)
    return float(2 * t.cdf(off, free) - 1)


def curve(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """By confidence, the share of these figures that its interval would hold."""
    needed = [needed_level(row) for row in rows]
    return [(level, sum(found <= level for found in needed) / len(needed)) for level in LEVELS]


def noisy(rows: Sequence[Row]) -> list[Row]:
    """Single figures that noise moves, in the answer and in the full run."""
    return [r for r in answered(rows) if r.moved and not r.mean and r.draws > 1 and not math.isnan(r.full)]


def picture(rows: Sequence[Row]) -> str:
    """SVG: the share of full figures inside over the confidence, and full figures over predicted ones."""
    own = noisy(rows)
    kinds = list(dict.fromkeys(row.kind for row in own))
    points = [
        {"images": kind, "confidence": level, "inside": share}
        for kind in kinds
        for level, share in curve([row for row in own if row.kind == kind])
    ]
    points += [{"images": "as it should be", "confidence": x, "inside": x} for x in (0.0, 1.0)]
    lines = (
        alt.Chart(alt.Data(values=points))  # type: ignore[no-untyped-call]
        .mark_line(point=True)
        .encode(
            x=alt.X("confidence:Q", title="confidence of the interval"),
            y=alt.Y("inside:Q", title="share of full figures inside"),
            color=alt.Color("images:N", title=None),
        )
        .properties(width=260, height=240)
    )
    values = [
        {
            "images": row.kind,
            "predicted": row.predicted,
            "full run": row.full,
            "low": row.noise_low,
            "high": row.noise_high,
        }
        for row in own
    ]
    chart = alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]
    dots = chart.mark_point(filled=True, size=40).encode(
        x=alt.X("full run:Q", title="IoU of the full run"),
        y=alt.Y("predicted:Q", title="predicted IoU, 90 % over the noise"),
        color=alt.Color("images:N", title=None),
    )
    bars = chart.mark_rule(opacity=0.5).encode(
        x="full run:Q", y="low:Q", y2="high:Q", color=alt.Color("images:N", title=None)
    )
    both = alt.hconcat(lines, (bars + dots).properties(width=260, height=240))
    svg: str = vl_convert.vegalite_to_svg(both.to_dict())
    return svg


def main() -> None:
    rows = read_csv(Row, DOCS / "figures" / "ask.csv")
    publish("ask.md", "ask", table_of(rows), picture(rows))


if __name__ == "__main__":
    main()
