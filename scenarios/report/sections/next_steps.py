"""What to do next: a few sentences that follow from this run's figures, each with a command where there
is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scenarios.report.figures import gain, not_learned, thresholds_of
from scenarios.report.parts import Section, Step, Steps
from scenarios.report.reading import Run, refusals
from scenarios.report.words import listed, percent

MOST = 6
OFTEN_UNKNOWN = 0.1
"""From this share of known images on, frozen SAM segments so many that it is worth a look."""


def next_steps(run: Run) -> Section:
    """The section; what the figures ask for comes first, what always applies last."""
    return Section("next", "What to do next", "", (Steps((*found_in(run), *for_every_run(run))[:MOST]),))


def found_in(run: Run) -> Iterator[Step]:
    """Steps that this run's own figures ask for."""
    summary = run.summary
    if summary.evaluated_on != "test":
        yield Step(
            "These are figures of validation images. When the settings are chosen, measure them once on "
            "test images.",
            "casam run scenario.json --set evaluation.split=test",
        )
    if failures := [event for event in run.events if event.name in ("no-result", "rejected")]:
        names = sorted({str(event.facts.get("institution")) for event in failures})
        yield Step(
            f"{number(len(failures), 'answer')} missing or rejected ({listed(names)}). Read the reasons "
            'under "Who did what", and the institutions\' own logs, before you trust these figures.'
        )
    fell_back = [str(event.facts.get("task")) for event in run.events if event.name == "fallback"]
    worse = [task for task in summary.tasks if is_worse(run, task) and task not in fell_back]
    if fell_back:
        yield Step(
            f"Frozen SAM keeps {listed(fell_back)}: the new layer was not clearly better on validation "
            "images. More images, also for validation, can change that."
        )
    if worse:
        yield Step(
            f"The bank is worse than frozen SAM on {listed(worse)} beyond chance. Look at the images "
            "before you use these entries.",
            "casam run scenario.json --set evaluation.overlays=6",
        )
    rate = summary.routing.false_unknown_rate
    if rate is not None and rate >= OFTEN_UNKNOWN:
        yield Step(
            f"{percent(rate)} of the images of the stream's tasks count as unknown, so frozen SAM segments "
            f"them. {why_unknown(run)}"
        )
    if silent := [name for name, site in summary.privacy.items() if site.policy.metrics == "never"]:
        yield Step(
            f"{they(silent, 'share')} no scores, so nobody knows how well the bank works there. An "
            'institution decides that itself; with metrics = "noisy" it would share scores within a budget.'
        )
    if refusals(summary):
        yield Step(
            f'{number(refusals(summary), "request")} refused by policy. "Who did what" says which; a policy '
            "is the institution's own decision, and casam site review shows an institution what it allows."
        )


def why_unknown(run: Run) -> str:
    """Tasks that no router can choose, and where to look for the others."""
    known = thresholds_of(run)
    lost = {*not_learned(run), *(task for task in known if known[task] is None)}
    named = listed([task for task in run.summary.tasks if task in lost])
    said = f"No router can choose {named}. For other tasks, the" if lost else "The"
    return f'{said} margins under "How images find their task" show whether they lie near the threshold.'


def for_every_run(run: Run) -> Iterator[Step]:
    """Steps that make sense after every run."""
    trained = {name for holders in run.summary.holders.values() for name in holders}
    policies = {name: site.policy for name, site in run.summary.privacy.items()}
    exact = [n for n in run.institutions if n in trained and n in policies and policies[n].exact]
    if exact and not run.audits:
        yield Step(
            f"{they(exact, 'send')} values without noise. Measure what an "
            "attacker finds out about single images.",
            "casam attack RUN",
        )
    if gain(run) is not None:
        yield Step(
            "One run cannot show whether a difference is chance. Repeat it with other seeds.",
            f"casam compare RUN/scenario.json --methods {run.summary.method} --seeds 0,1,2 --out FOLDER",
        )
    yield Step("Try the bank on an image of your own, beside frozen SAM.", "casam studio RUN")


def they(names: Sequence[str], do: str) -> str:
    """`a shares`, `a and b share`"""
    return f"{listed(names)} {do}{'s' if len(names) == 1 else ''}"


def number(count: int, what: str) -> str:
    """`1 answer was`, `3 answers were`"""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were"


def is_worse(run: Run, task: str) -> bool:
    """Whether the interval of an institution's gain lies below zero."""
    gains = [tasks[task].gain for tasks in run.summary.statistics.values() if task in tasks]
    return any(found.high is not None and found.high < 0 for found in gains)
