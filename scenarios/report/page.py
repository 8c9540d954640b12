"""The whole page: the sections of one run, or a comparison followed by a part for every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jinja2
from markupsafe import Markup

from scenarios.report.parts import Block, Cell, Section, Table
from scenarios.report.reading import Found, Run
from scenarios.report.sections.answer import answer_of
from scenarios.report.sections.comparison import comparison
from scenarios.report.sections.costs import costs
from scenarios.report.sections.headline import headline
from scenarios.report.sections.next_steps import next_steps
from scenarios.report.sections.privacy import privacy
from scenarios.report.sections.quality import quality
from scenarios.report.sections.record import course, surroundings
from scenarios.report.sections.routing import routing
from scenarios.report.words import listed

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Sections under one heading. name: its anchor, and the prefix of its sections' anchors."""

    name: str
    title: str
    sections: Sequence[Section]
    description: str = ""


def page(found: Found, *, full: bool, progress: Progress = lambda what: None) -> str:
    """The page as HTML. full: with several runs, add a part for every run after the comparison."""
    runs = found.runs
    parts = []
    if len(runs) > 1:
        progress("comparing")
        skipped = f" Skipped because they are not finished: {listed(found.skipped)}." if found.skipped else ""
        described = f"{len(runs)} runs side by side. Differences are relative to the first run.{skipped}"
        answers = [answer_of(name, text, number) for number, (name, text) in enumerate(found.answers, 1)]
        parts.append(Part("compare", "Comparison", [*answers, *comparison(runs)], described))
    if full or len(runs) == 1:
        for number, run in enumerate(runs, 1):
            progress(run.label)
            parts.append(part_of(run, f"r{number}"))
    title = runs[0].summary.scenario if len(runs) == 1 else f"{len(runs)} runs"
    return environment().get_template("page.html").render(title=title, parts=parts, style=style())


def part_of(run: Run, prefix: str) -> Part:
    """One run."""
    summary = run.summary
    sections = (
        headline(run),
        next_steps(run),
        with_pictures(quality(run, prefix), run),
        routing(run, prefix),
        privacy(run, prefix),
        costs(run, prefix),
        course(run),
        surroundings(run),
    )
    facts = f"Scenario {summary.scenario}, run {run.label}: method {summary.method}, seed {summary.seed}."
    description = f"{run.scenario.get('description', '')} {facts}"
    return Part(prefix, run.label, sections, description.strip())


def with_pictures(section: Section, run: Run) -> Section:
    """The section, and where the institutions of a simulation drew pictures for themselves: never the
    pictures.
    """
    most = int(run.scenario.get("evaluation", {}).get("overlays", 0))
    if not most:
        return section
    rows = tuple(
        (Cell(name, href=f"institutions/{name}/private/overlays/index.html"),) for name in run.institutions
    )
    caption = (
        "Pictures that each institution drew of its own images, at most "
        f"{most} of a task. This page holds none of them: the links work where it lies in the run "
        "folder, and `casam studio` shows them, too"
    )
    blocks: list[Block] = [*section.blocks, Table(caption, ("institution",), rows)]
    return Section(section.name, section.title, section.help, blocks)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The templates of this package; all text from a run is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("scenarios.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> Markup:
    """The style sheet, to be included in the page."""
    return Markup(environment().get_template("style.css").render())
