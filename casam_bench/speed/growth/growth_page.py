"""The generated part of docs/performance.md about growth.

In a clone, after `casam bench growth` has written growth.csv,

    cp growth.csv docs/figures/ && python -m casam_bench.speed.growth.growth_page

writes the tables between the page's marks, and docs/figures/growth.svg.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import vl_convert

from casam_bench.bench import markdown, read_csv
from casam_bench.quality.layer_page import DOCS, publish
from casam_bench.speed.growth.growth_model import Model, Point, models_of

NEXT = 100_000
"""Institutions and tasks that the model is asked about, ten times the largest measurement."""

LIMIT = 0.2
"""Largest error of a prediction that counts as met, as a share."""

WORDS = {
    "run_seconds": "a run of one stage, processor seconds",
    "run_mib": "peak of its anonymous memory, MiB",
    "open_ms": "open the bank and read all heads, ms",
    "score_ms": "score and segment a new image, ms",
    "stage_ms": "the same image at a later stage, ms",
    "task_mib": "anonymous memory, MiB",
}


def tables(points: Sequence[Point]) -> str:
    """What was measured, for institutions and for tasks, and the model."""
    parts = []
    for over in dict.fromkeys(point.over for point in points):
        own = [point for point in points if point.over == over]
        quantities = list(dict.fromkeys(point.quantity for point in own))
        values = {(point.size, point.quantity): point.value for point in own}
        rows = [
            [f"{size:,}", *(f"{values[size, quantity]:.4g}" for quantity in quantities)]
            for size in dict.fromkeys(point.size for point in own)
        ]
        parts.append(markdown([over, *(WORDS[quantity] for quantity in quantities)], rows))
    parts.append(
        markdown(
            ["quantity", "over", "base", "each", "off at sizes held out, %", "20 %", f"at {NEXT:,}"],
            [line_of(model) for model in models_of(points)],
        )
    )
    return "\n\n".join(parts)


def line_of(model: Model) -> list[str]:
    """The model's line of the table."""
    errors = ", ".join(f"{size:,}: {100 * error:+.0f}" for size, error in model.errors.items())
    constants = (f"{model.base:.3g}", f"{model.each:.3g}")
    met = "met" if model.worst <= LIMIT else "**missed**"
    return [WORDS[model.quantity], model.over, *constants, errors, met, f"{model.at(NEXT):,.0f}"]


def picture(points: Sequence[Point]) -> str:
    """SVG: every quantity over its size, points as measured and a line for the model."""
    sides = []
    for model in models_of(points):
        own = [p for p in points if (p.over, p.quantity) == (model.over, model.quantity)]
        values = [{"n": p.size, "measured": p.value, "model": model.at(p.size)} for p in own]
        chart = alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]
        x = alt.X("n:Q", scale=alt.Scale(type="log"), title=model.over)
        title, scale = WORDS[model.quantity], alt.Scale(type="log")
        measured = chart.mark_point(filled=True, size=50).encode(
            x=x, y=alt.Y("measured:Q", scale=scale, title=title)
        )
        line = chart.mark_line().encode(x=x, y=alt.Y("model:Q", scale=scale, title=title))
        sides.append((line + measured).properties(width=220, height=160))
    svg: str = vl_convert.vegalite_to_svg(alt.concat(*sides, columns=3).to_dict())
    return svg


def main() -> None:
    points = read_csv(Point, DOCS / "figures" / "growth.csv")
    publish("performance.md", "growth", tables(points), picture(points))


if __name__ == "__main__":
    main()
