"""A study's own answer (its summary.md, scenarios/study/text.py): the verdicts first, then its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scenarios.report.parts import Block, Code, Notice, Row, Section, Table


def answer_of(name: str, text: str, number: int) -> Section:
    """The section that leads a study's page. The text itself comes last, unchanged."""
    lines = text.splitlines()
    blocks: list[Block] = [*verdicts(lines), *tables(lines)]
    blocks.append(Code(f"{name}: summary.md", text, folded=bool(blocks)))
    help_ = "The study's own summary. It pairs differences by seed, with intervals and corrected tests."
    return Section(f"answer{number}", f"What study {name} found", help_, blocks)


def plain(line: str) -> str:
    """A line without Markdown's emphasis."""
    return line.replace("**", "").strip()


def verdicts(lines: Sequence[str]) -> Iterator[Notice]:
    """Every question of the study with its verdicts, one notice for each verdict."""
    question, where = "", ""
    for line in lines:
        if line.startswith("## "):
            question, where = plain(line[3:]), ""
        elif line.startswith("### "):
            where = f" ({plain(line[4:])})"
        elif line.startswith("- ") and question:
            yield Notice(f"{question}{where} {plain(line[2:])}", "soft")
        elif line.startswith("- "):
            yield Notice(f"Not finished: {plain(line[2:])}", "warn")


def tables(lines: Sequence[str]) -> Iterator[Table]:
    """The tables, each under the heading before it."""
    caption, rows = "", list[list[str]]()
    for line in (*lines, ""):
        if line.startswith("|"):
            rows.append([plain(cell) for cell in line.strip()[1:-1].split("|")])
            continue
        if len(rows) > 2:  # the head, Markdown's rule, at least one row
            body: list[Row] = [tuple(row) for row in rows[2:] if len(row) == len(rows[0])]
            yield Table(caption or "Figures", tuple(rows[0]), tuple(body))
        rows = []
        if line.startswith("#") or line.startswith("By institution"):
            caption = plain(line.lstrip("#"))
