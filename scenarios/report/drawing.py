"""Altair charts as inline SVG without scripts or requests.

Colours are CSS variables (style.css), so that one picture fits light mode, dark mode and paper. Vega
describes every mark for screen readers. Each picture has a sentence and a table instead, so the description
becomes the mark's tooltip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import altair as alt
import vl_convert
from markupsafe import Markup

INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
OURS, FROZEN, UNKNOWN = "var(--c-ours)", "var(--c-frozen)", "var(--c-unknown)"
SERIES = tuple(f"var(--c-{i})" for i in range(8))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "stroke")
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)

Data = Sequence[Mapping[str, Any]]


def values(data: Data) -> alt.Data:
    """Rows as inline data of a chart."""
    return alt.Data(values=[dict(row) for row in data])  # type: ignore[no-untyped-call]


def draw(chart: alt.TopLevelMixin, prefix: str) -> Markup:
    """The chart as an <svg> element. prefix: makes the element's ids unique on the page."""
    spec = chart.to_dict()
    spec["config"] = CONFIG
    return Markup(cleaned(vl_convert.vegalite_to_svg(spec), prefix))


CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": SOFT,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "domainColor": LINE,
        "tickColor": LINE,
        "gridColor": LINE,
        "labelLimit": 200,
        "titlePadding": 8,
    },
    "text": {"fontSize": 12, "color": INK},
}


def cleaned(svg: str, prefix: str) -> str:
    """The SVG without roles, with tooltips, and with ids that start with `prefix`."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        said = element.attrib.get("aria-label")
        mark = element.attrib.get("aria-roledescription", "").endswith("mark")
        for name in [name for name in element.attrib if name.startswith("aria-") or name == "role"]:
            del element.attrib[name]
        if said and mark and element.tag != f"{{{SVG}}}text":
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = said
            element.insert(0, title)
    root.attrib["focusable"] = "false"
    root.attrib["aria-hidden"] = "true"
    text = ElementTree.tostring(root, encoding="unicode")
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    for number, name in enumerate(names):
        text = text.replace(f'id="{name}"', f'id="{prefix}-{number}"')
        text = text.replace(f"url(#{name})", f"url(#{prefix}-{number})")
    return text
