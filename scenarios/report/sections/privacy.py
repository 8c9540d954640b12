"""Each institution's policy, its privacy cost so far, and what was unlearned."""

from __future__ import annotations

from typing import Any

import altair as alt

from scenarios.report.drawing import INK, OURS, draw, values
from scenarios.report.ledger_table import in_order, ledger_table, noisy
from scenarios.report.parts import Block, Cell, Chart, Key, Notice, Panel, Row, Section, Table
from scenarios.report.reading import Run
from scenarios.report.words import (
    MISSING,
    count,
    fraction,
    listed,
    signed,
)
from server.run.summary_schema import UnlearnedPart

MOST_IN_CHART = 40


def privacy(run: Run, prefix: str) -> Section:
    """The section."""
    blocks: list[Block] = []
    if run.summary.noise is not None:
        seeded = run.summary.noise.startswith("seeded")
        blocks.append(
            Notice(
                f"Privacy noise: {run.summary.noise}."
                + (" These figures show the cost of noise; they give no protection." if seeded else ""),
                "warn" if seeded else "good",
            )
        )
    if run.summary.approved_by is not None:
        blocks.append(Notice(f"Who approved this scenario: {run.summary.approved_by}.", "soft"))
    blocks.append(ledger_table(run))
    if (chart := epsilon_chart(run, prefix)) is not None:
        blocks.append(chart)
    if run.audits:
        blocks.append(audit_table(run))
    blocks.append(anonymity_table(run) or Notice(NO_ANONYMITY, "soft"))
    blocks += [block for record in run.summary.unlearned for block in unlearned(record)]
    return Section(
        "privacy",
        "What each institution allowed, and what it cost",
        "Each institution decides its own policy. Epsilon (ε) is the privacy cost of releases with noise: it "
        "limits how much one image (or patient) can change what others see. A value near or below 1 is "
        "strong protection; a value above 10 guarantees little. A release without noise has no epsilon: "
        "nothing limits what it reveals.",
        blocks,
    )


NO_ANONYMITY = "This run does not record the size of the cohort in which each release is hidden."


def epsilon_chart(run: Run, prefix: str) -> Chart | None:
    """Spent epsilon and budget of each institution; None if no institution adds noise."""
    data: list[dict[str, Any]] = []
    rows = []
    for name in in_order(run):
        ledger = run.summary.privacy[name]
        for what, words in (("train", "training images"), ("metrics", "test images")):
            budget = ledger.policy.budget.epsilon if what == "train" else ledger.policy.budget.epsilon_metrics
            if not noisy(ledger, what) or budget is None:
                continue
            value = (ledger.epsilon_train if what == "train" else ledger.epsilon_metrics) or 0.0
            say = f"{name}, {words}: {value:.2f} of {budget:g}"
            row = {"row": f"{name} · {words}", "spent": value, "budget": budget, "zero": 0, "say": say}
            data.append(row)
            rows.append((name, words, f"{value:.2f}", f"{budget:g}", f"{max(budget - value, 0):.2f}"))
    if not data:
        return None
    shown = data[:MOST_IN_CHART]
    base = alt.Chart(values(shown)).encode(
        y=alt.Y("row:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, grid=False)),
        description=alt.Description("say:N"),
    )
    x = alt.X("spent:Q", title="epsilon", scale=alt.Scale(domainMin=0))
    bars = base.mark_bar(height=12, cornerRadiusEnd=3, fill=OURS).encode(x=x)
    ends = base.mark_tick(thickness=3, size=20, color=INK).encode(x=alt.X("budget:Q"))
    chart = alt.layer(bars, ends).properties(width=330, height=alt.Step(28))
    return Chart(
        "Privacy budgets",
        "The bar shows the epsilon spent in all runs of the institution's ledger; the mark shows its budget. "
        "The institution refuses a release that would pass the mark."
        + (
            f" The chart shows the first {MOST_IN_CHART} of {len(data)}." if len(data) > MOST_IN_CHART else ""
        ),
        (Panel(draw(chart, f"{prefix}-epsilon"), f"Epsilon: {'; '.join(str(r['say']) for r in shown)}."),),
        Table(
            "Epsilon spent and left",
            ("institution", "of what", "spent", "budget", "left"),
            tuple(rows),
            words=frozenset({1}),
        ),
        (Key("ours", "spent"), Key("tick", "budget")),
    )


def audit_table(run: Run) -> Table:
    """What worst-case canaries proved about every claim, beside the claim."""
    from casam_bench.membership.audit_lines import facts_of

    rows: list[Row] = [
        (name, *facts_of(line)[:-1], Cell(f"{line.correct:,}", "refused" if line.refuted else ""))
        for name in run.institutions
        for line in run.audits.get(name, ())
    ]
    return Table(
        "Measured lower bounds of epsilon (casam attack)",
        (
            "institution",
            "release",
            "ε claimed",
            "ε at least, 95 %",
            "ratio",
            "δ of the audit",
            "canaries",
            "guesses",
            "correct",
        ),
        tuple(rows),
        words=frozenset({1}),
    )


VIEWERS = {"server": "the server", "co_holder": "another institution in the sum"}


def anonymity_table(run: Run) -> Table | None:
    """The size of the cohort in which each release is hidden; None if the run does not record it."""
    rows: list[Row] = []
    for name in in_order(run):
        for release, seen in run.summary.privacy[name].anonymity.items():
            cells = [count(seen.get(viewer)) for viewer in VIEWERS]
            alone = seen.get("server") in (None, 1)
            reading = "visible by itself" if alone else "hidden in a sum"
            rows.append((name, release, *cells, reading))
    if not rows:
        return None
    return Table(
        "Number of institutions among which a release is hidden (1: it is visible by itself)",
        ("institution", "release", *(f"for {viewer}" for viewer in VIEWERS.values()), "reading"),
        tuple(rows),
        words=frozenset({1, 4}),
    )


def unlearned(record: UnlearnedPart) -> list[Block]:
    """What was deleted and retrained, and how the tasks' IoU changed."""
    done = [f"deleted {listed(record.deleted)}"] if record.deleted else []
    done += [f"retrained {listed(record.retrained)} without it"] if record.retrained else []
    notice = Notice(
        f"{record.institution} left at stage {record.stage} and asked to be unlearned: the bank "
        f"{' and '.join(done) or 'held nothing from it'}. Bank before {record.bank_before[:12] or MISSING}, "
        f"after {record.bank_after[:12] or MISSING}. Unlearning does not give back spent epsilon, and it "
        "does not withdraw published figures.",
        "soft",
    )
    rows = []
    for task in sorted({*record.iou_before, *record.iou_after}):
        before, after = record.iou_before.get(task), record.iou_after.get(task)
        change = None if before is None or after is None else after - before
        rows.append((task, fraction(before), fraction(after), signed(change)))
    if not rows:
        return [notice]
    caption = f"IoU before and after unlearning {record.institution}"
    return [notice, Table(caption, ("task", "before", "after", "change"), tuple(rows))]
