"""Each institution's policy in words and what its ledger says."""

from __future__ import annotations

from scenarios.report.parts import Cell, Row, Table
from scenarios.report.reading import Run
from scenarios.report.words import MISSING, OUTCOMES, TIMES, count, policy_in_words, size
from server.run.summary_schema import Privacy


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
    """Institutions in the summary, in the scenario's order."""
    return [name for name in run.institutions if name in run.summary.privacy]


def noisy(ledger: Privacy, what: str) -> bool:
    """Whether epsilon limits what leaves of training images (`train`), or of metrics: all of it has noise."""
    policy = ledger.policy
    return policy.private and not policy.exact if what == "train" else policy.metrics == "noisy"


def spent(ledger: Privacy, what: str) -> Cell:
    """`2.31 of 3`, or the reason why there is no epsilon."""
    policy = ledger.policy
    value = ledger.epsilon_train if what == "train" else ledger.epsilon_metrics
    budget = policy.budget.epsilon if what == "train" else policy.budget.epsilon_metrics
    if noisy(ledger, what):
        shared = (
            {f"{share:.0%}" for share in ledger.router_share.values() if share} if what == "train" else ()
        )
        of_router = f"; the router takes up to {' or '.join(sorted(shared))} of it" if shared else ""
        return Cell(f"{0.0 if value is None else value:.2f} of {budget:g}{of_router}")
    if what == "train" and policy.private:
        return Cell("no limit (a part has no noise)")
    shares = policy.exact if what == "train" else policy.metrics != "never"
    return Cell("no limit (no noise)" if shares else "nothing is sent")
