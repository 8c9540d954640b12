"""The first section: the results in a few sentences and in cards."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from scenarios.report.figures import SPLITS, empty_cells, gain, thresholds_of
from scenarios.report.parts import Block, Card, Cards, Notice, Section, Tone
from scenarios.report.reading import Run, frozen_iou, refusals
from scenarios.report.words import count, fraction, listed, percent, points, signed, size
from server.run.summary_schema import Routing, Summary


def headline(run: Run) -> Section:
    """Sentences and cards."""
    blocks: list[Block] = [Notice(in_sentences(run)), Cards(tuple(cards(run)))]
    if run.summary.evaluated_on != "test":
        split = SPLITS[run.summary.evaluated_on]
        text = f"Measured on {split} images: use these figures to choose settings, not as final results."
        blocks.insert(1, Notice(text, "warn"))
    if (missing := empty_cells(run)) is not None:
        blocks.append(missing)
    return Section("figures", "What came out", "", blocks)


def in_sentences(run: Run) -> str:
    """The result in words."""
    summary = run.summary
    said = [who_learned_what(run)]
    gained = gain(run)
    if gained is not None:
        said.append(
            f"At the end the mean IoU is {fraction(summary.last_iou)}, {against_frozen(gained)} frozen SAM's "
            f"{fraction(frozen_iou(summary))}."
        )
    elif summary.last_iou is not None:
        said.append(
            f"At the end the mean IoU over the tasks with known scores is {fraction(summary.last_iou)}."
        )
    if summary.ff_iou is not None:
        lost = (
            "Nothing was forgotten"
            if summary.ff_iou < 0.05
            else f"{summary.ff_iou:.1f} points of IoU were forgotten"
        )
        known = "" if summary.complete.get("ff_iou", False) else ", among the tasks with known scores"
        said.append(f"{lost} between a task's best stage and the last{known}.")
    if summary.routing.accuracy is not None:
        complete = summary.complete.get("last_iou", False)
        which = "the images" if complete else "the images whose routes are known"
        said.append(f"The router sent {percent(summary.routing.accuracy)} of {which} to their own task.")
    return " ".join(said)


def against_frozen(gained: float) -> str:
    """`9.3 points above`, `the same as`"""
    distance = f"{100 * abs(gained):.1f}"
    if not float(distance):
        return "the same as"
    return f"{distance} points {'above' if gained > 0 else 'below'}"


def who_learned_what(run: Run) -> str:
    """How many institutions trained which tasks, and which tasks frozen SAM keeps."""
    tasks, fell_back = run.summary.tasks, {e.facts.get("task") for e in run.events if e.name == "fallback"}
    trained = {task: names for task in tasks if (names := run.summary.holders.get(task))}
    learned = [task for task in trained if task not in fell_back]
    kept = [task for task in tasks if task not in learned]
    trainers = len({name for names in trained.values() for name in names})
    stages = f"{run.stages} stage{'s' if run.stages > 1 else ''}"
    said = (
        f"{trainers} of {len(run.institutions)} institutions learned {len(learned)} of {len(tasks)} tasks in "
        f"{stages} ({listed(learned)}) without pooling an image."
        if learned
        else f"No task was learned in {stages}."
    )
    said += f" Frozen SAM keeps {listed(kept)}." if kept else ""
    unseen = [task for task in learned if thresholds_of(run).get(task, 0.0) is None]
    if unseen and run.summary.routing.confusion is not None:
        whose = "its" if len(unseen) == 1 else "their"
        said += f" No router can choose {listed(unseen)}, because {whose} holders share no router state."
    return said


def forgetting(summary: Summary) -> Iterator[Card]:
    """The card of what was forgotten: by tasks, or by institutions with orders of their own."""
    if summary.ff_iou is not None:
        yield Card(
            "Forgetting",
            f"{signed(summary.ff_iou, 2).lstrip('+')} points",
            f"backward transfer {points(summary.bwt_iou)} points",
            "Mean loss of the tasks from their best earlier stage to the last, in hundredths of IoU. 0 "
            "means no loss. Backward transfer is the mean change since each task was learned.",
            "good" if summary.ff_iou < 1 else "bad",
        )
        return
    lost = {name: forgotten for name, forgotten in summary.site_ff_iou.items() if forgotten is not None}
    if lost:
        most = max(lost, key=lost.__getitem__)
        yield Card(
            "Forgetting of institutions",
            f"{signed(fmean(lost.values()), 2).lstrip('+')} points",
            f"most: {most}, {signed(lost[most], 2).lstrip('+')} points",
            "Mean loss of an institution's tasks on its own images, from their best stage since it learned "
            "them to the last, in hundredths of IoU; then the mean over the institutions that told scores.",
            "good" if lost[most] < 1 else "bad",
        )


def cards(run: Run) -> list[Card]:
    """Headline figures, without those that do not apply to this run."""
    summary, routes = run.summary, run.summary.routing
    gained = gain(run)
    equal = gained is None or against_frozen(gained) == "the same as"
    last_tone: Tone = "" if equal or gained is None else "good" if gained > 0 else "bad"
    if summary.last_iou is not None and not summary.complete.get("last_iou", False):
        compare = "over the tasks with known scores"
    else:
        compare = f"frozen SAM: {fraction(frozen_iou(summary))}"
    found = [
        Card(
            "IoU at the end",
            fraction(summary.last_iou),
            compare + (f" ({points(gained)} points)" if gained is not None else ""),
            "Mean over the tasks after the last stage. 1 means that every outline is exactly right.",
            last_tone,
        ),
        Card(
            "Average IoU",
            fraction(summary.avg_iou),
            "over all stages",
            "After each stage, the mean IoU of the tasks learned so far; this is the mean over all stages.",
        ),
    ]
    found.extend(forgetting(summary))
    if summary.plasticity_iou is not None:
        found.append(
            Card(
                "Right after learning",
                fraction(summary.plasticity_iou),
                f"forward transfer {points(summary.fwt_iou)} points"
                if summary.fwt_iou is not None
                else "forward transfer not measured",
                "Plasticity: the mean IoU of every task right after it was learned. Forward transfer is what "
                "earlier tasks already gave it before, above frozen SAM.",
            )
        )
    if routes.accuracy is not None:
        found.append(
            Card(
                "Routed to their task",
                percent(routes.accuracy),
                f"{percent(routes.false_unknown_rate)} treated as unknown",
                "Share of the images of the stream's tasks that the router sent to their own task. Frozen "
                "SAM segments the images that the router treats as unknown.",
            )
        )
    if routes.unseen_unknown_rate is not None:
        auroc = f"AUROC {fraction(routes.auroc)}" if routes.auroc is not None else "AUROC not known"
        found.append(
            Card(
                "Unknown images recognised",
                percent(routes.unseen_unknown_rate),
                auroc,
                "Share of the images of tasks outside the stream that the router treats as unknown, which is "
                "right. AUROC measures how well known and unknown images can be separated; 0.5 is guessing."
                + near_and_far(routes),
            )
        )
    up, down = sum(summary.bytes.up.values()), sum(summary.bytes.down.values())
    found.append(
        Card(
            "Sent by institutions",
            size(up),
            f"received {size(down)}",
            "All bytes of all stages: layers, routers and figures. No image is sent.",
        )
    )
    found.append(privacy_card(run))
    failures = sum(event.name == "no-result" for event in run.events)
    found.append(
        Card(
            "Refusals and failures",
            f"{count(refusals(summary))} and {count(failures)}",
            "by policy, and by errors",
            "Number of requests that an institution's policy refused, and number of missing answers.",
            "bad" if failures else "",
        )
    )
    return found


def near_and_far(routes: Routing) -> str:
    """The AUROC of near and of far unknown tasks, in words; nothing where the scenario calls none near."""
    if routes.near.auroc is None:
        return ""
    far = "" if routes.far.auroc is None else f", for the others {fraction(routes.far.auroc)}"
    return f" It is {fraction(routes.near.auroc)} for tasks that resemble learned ones{far}."


def privacy_card(run: Run) -> Card:
    """The highest epsilon of training images; where an institution has no limit, this comes first."""
    sites = run.summary.privacy
    exact = [name for name, site in sites.items() if site.policy.exact]
    limited = {n: p.epsilon_train or 0.0 for n, p in sites.items() if p.policy.private and n not in exact}
    title = "Privacy of training images"
    if not limited:
        return Card(
            title,
            "no limit" if exact else "nothing sent",
            f"{len(exact)} of {len(sites)} institutions allow exact values",
            "Exact values are layers or routers without noise: nothing limits what they reveal about single "
            "images.",
        )
    worst = max(limited, key=lambda name: limited[name])
    simulated = (run.summary.noise or "").startswith("seeded")
    limit = f"ε ≤ {limited[worst]:.2f}"
    return Card(
        title,
        "no limit for all" if exact else limit,
        f"{len(exact)} of {len(sites)} institutions allow exact values"
        + (f"; {limit} for {len(limited)}" if exact else ""),
        f"The highest privacy cost so far is that of {worst}."
        + (" The noise is seeded: this simulates the cost and gives no protection." if simulated else ""),
        "bad" if simulated else "",
    )
