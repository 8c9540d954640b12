"""What every institution allows, what its privacy has cost so far, and what was unlearned."""

from __future__ import annotations

from typing import Any

import altair as alt

from scenarios.report.drawing import INK, OURS, draw, values
from scenarios.report.parts import Block, Cell, Chart, Key, Notice, Panel, Row, Section, Table
from scenarios.report.reading import Run
from scenarios.report.words import (
    MISSING,
    OUTCOMES,
    TIMES,
    count,
    fraction,
    listed,
    policy_in_words,
    signed,
    size,
)
from server.run.summary_schema import Privacy, UnlearnedPart

MOST_IN_CHART = 40


def privacy(run: Run, prefix: str) -> Section:
    """The section."""
    blocks: list[Block] = []
    if run.summary.noise is not None:
        seeded = run.summary.noise.startswith("seeded")
        blocks.append(
            Notice(
                f"Privacy noise: {run.summary.noise}."
                + (" These figures show what noise costs; they protect no one." if seeded else ""),
                "warn" if seeded else "good",
            )
        )
    blocks.append(ledger_table(run))
    if (chart := epsilon_chart(run, prefix)) is not None:
        blocks.append(chart)
    blocks.append(anonymity_table(run) or Notice(NO_ANONYMITY, "soft"))
    blocks += [block for record in run.summary.unlearned for block in unlearned(record)]
    return Section(
        "privacy",
        "What each institution allowed, and what it cost",
        "The policy is each institution's own. Epsilon is the price of a release with noise: how much more "
        "likely anything may look because one image (or patient) was there. Near 1 and below is strong, "
        "above 10 says little. A release without noise has no epsilon: nothing limits what it tells.",
        blocks,
    )


NO_ANONYMITY = "This run does not record among how many institutions each release hides."


def ledger_table(run: Run) -> Table:
    """One row per institution."""
    rows: list[Row] = []
    for name in in_order(run):
        ledger = run.summary.privacy[name]
        refusals = tuple(
            f"{times} {TIMES} {OUTCOMES[outcome].short if outcome in OUTCOMES else outcome}"
            for outcome, times in ledger.refusals.items()
        )
        rows.append(
            (
                name,
                Cell("; ".join(policy_in_words(ledger.policy))),
                spent(ledger, "train"),
                spent(ledger, "metrics"),
                Cell(MISSING if ledger.delta is None else f"δ {ledger.delta:g} per {ledger.unit}"),
                count(ledger.releases),
                size(ledger.bytes),
                Cell("; ".join(refusals) or "none", "refused" if refusals else ""),
            )
        )
    return Table(
        "Policy and ledger by institution",
        (
            "institution",
            "policy",
            "ε training images",
            "ε test images",
            "δ and unit",
            "releases",
            "sent",
            "refusals",
        ),
        tuple(rows),
        words=frozenset({1, 2, 3, 4, 7}),
    )


def in_order(run: Run) -> list[str]:
    """Institutions of the summary in the scenario's order."""
    return [name for name in run.institutions if name in run.summary.privacy]


def noisy(ledger: Privacy, what: str) -> bool:
    """Whether this policy adds noise to what is made from training images, or to metrics."""
    return ledger.policy.private if what == "train" else ledger.policy.metrics == "noisy"


def spent(ledger: Privacy, what: str) -> Cell:
    """`2.31 of 3`, or in words why there is no such figure."""
    value = ledger.epsilon_train if what == "train" else ledger.epsilon_metrics
    budget = ledger.policy.budget.epsilon if what == "train" else ledger.policy.budget.epsilon_metrics
    if noisy(ledger, what):
        return Cell(f"{0.0 if value is None else value:.2f} of {budget:g}")
    shares = (
        "yes" in (ledger.policy.adapter.share, ledger.policy.router.share)
        if what == "train"
        else ledger.policy.metrics != "never"
    )
    return Cell("no limit (no noise)" if shares else "nothing leaves")


def epsilon_chart(run: Run, prefix: str) -> Chart | None:
    """Spent epsilon within each budget; None where nobody adds noise."""
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
        "The bar is what has been spent in all runs that the institution's ledger knows, the mark its "
        "budget. When a bar reaches its mark the institution refuses."
        + (f" The first {MOST_IN_CHART} of {len(data)} are drawn." if len(data) > MOST_IN_CHART else ""),
        (Panel(draw(chart, f"{prefix}-epsilon"), f"Epsilon: {'; '.join(str(r['say']) for r in shown)}."),),
        Table(
            "Epsilon spent and left",
            ("institution", "of what", "spent", "budget", "left"),
            tuple(rows),
            words=frozenset({1}),
        ),
        (Key("ours", "spent"), Key("tick", "budget")),
    )


VIEWERS = {"server": "the server", "co_holder": "another institution in the sum"}


def anonymity_table(run: Run) -> Table | None:
    """Among how many institutions a release hides; None where no run says so."""
    rows: list[Row] = []
    for name in in_order(run):
        for release, seen in run.summary.privacy[name].anonymity.items():
            cells = [count(seen.get(viewer)) for viewer in VIEWERS]
            alone = seen.get("server") in (None, 1)
            reading = "seen as it is" if alone else "hidden in a sum"
            rows.append((name, release, *cells, reading))
    if not rows:
        return None
    return Table(
        "Among how many institutions a release hides (1: it is seen as it is)",
        ("institution", "release", *(f"for {viewer}" for viewer in VIEWERS.values()), "reading"),
        tuple(rows),
        words=frozenset({1, 4}),
    )


def unlearned(record: UnlearnedPart) -> list[Block]:
    """What was deleted and retrained, and what it cost the tasks."""
    done = [f"deleted {listed(record.deleted)}"] if record.deleted else []
    done += [f"retrained {listed(record.retrained)} without it"] if record.retrained else []
    notice = Notice(
        f"{record.institution} left at stage {record.stage} and asked to be unlearned: the bank "
        f"{' and '.join(done) or 'held nothing of it'}. Bank before {record.bank_before[:12] or MISSING}, "
        f"after {record.bank_after[:12] or MISSING}. Spent epsilon does not come back, and published "
        "figures stay published.",
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
