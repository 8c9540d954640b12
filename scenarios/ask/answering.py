"""Answer a question: replay the run as it was and as it would be, and what differs with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from casam_core.errors import CasamError, RunError
from casam_core.files import lock_file, make_folder
from casam_core.protocol.messages import TaskResult
from client.node.worktime import noted
from scenarios.ask.answers import Answer, Cost, Row
from scenarios.ask.asking import Question, write_study
from scenarios.ask.remembering import FOLDER, SiteMemory, memory_of
from scenarios.ask.replay import Clock, Replayed, TooSlowError, replay
from server.run.summary_schema import Privacy

CONFIDENCE = 0.9


def answer(asked: Question, *, seconds: float = 30.0, draws: int = 5) -> Answer:
    """Answer a question within about so many seconds.

    draws: of the noise, at most; fewer if the seconds end. Raises RunError with the command of the study if
    not even one fits, and the CasamError with which the changed run would end.
    """
    make_folder(asked.run / FOLDER, 0o700)
    study = write_study(asked)
    try:
        lock = lock_file(asked.run / FOLDER / "lock")
    except BlockingIOError as error:
        raise RunError(f"{asked.run}: another question is being answered; wait for it") from error
    with lock:
        clock = Clock(seconds, pace_of(asked))
        try:
            now = replay(asked.old, memory_of(asked.run, asked.old, asked.old), asked.data_root, clock)
            memories = memory_of(asked.run, asked.old, asked.new)
            drawn = [replay(asked.new, memories, asked.data_root, clock)]
        except TooSlowError as error:
            raise RunError(
                f"no answer within {seconds:g} s: {error}; give more with --seconds, or run: {study}"
            ) from error
        noisy = any(site.policy.adds_noise for site in asked.new.institutions)
        trained = tuple(f"{name}: {task}" for name, task in dict.fromkeys(clock.trained))
        ended = ""
        if noisy:
            more, ended = redrawn(asked, memories, clock, draws)
            drawn += more
    figures = list(predictions(now, drawn))
    return Answer(
        settings=asked.settings,
        rows=tuple(figure.row for figure in figures),
        mean=mean_of(figures),
        costs=tuple(costs(now, drawn[0])),
        draws=len(drawn) if noisy else 0,
        seconds=round(clock.seconds, 2),
        trained=trained,
        unknown=tuple(unknown(asked, now, drawn, ended)),
        study=study,
    )


def redrawn(
    asked: Question, memories: Mapping[str, SiteMemory], clock: Clock, draws: int
) -> tuple[list[Replayed], str]:
    """More draws of the noise, as long as one more ends in time; and with what a draw ended the run."""
    found: list[Replayed] = []
    needed = 0.0
    for draw in range(1, draws):
        begun = clock.seconds
        if begun + needed > clock.limit:
            break
        try:
            found.append(replay(asked.new, memories, asked.data_root, clock, draw))
        except TooSlowError:
            break
        except CasamError as error:
            return found, str(error)
        needed = clock.seconds - begun
    return found, ""


def pace_of(asked: Question) -> dict[tuple[str, str], float]:
    """By institution and task, the seconds that its training took in the run."""
    found: dict[tuple[str, str], float] = {}
    for site in asked.old.institutions:
        for work in noted(asked.run / "institutions" / site.name / "private"):
            if work.kind.startswith("train") and not work.kind.endswith(("router", "calibrate")):
                key = (site.name, work.task)
                found[key] = max(found.get(key, 0.0), work.seconds)
    return found


@dataclass(frozen=True)
class Predicted:
    """One figure before it is a row. values: of every draw, the first one of the run's seed; empty where one
    of them has none. images_half: half of the interval over test images, 0 where it is not known."""

    institution: str
    task: str
    now: float | None
    values: tuple[float, ...]
    images_half: float
    routes: Mapping[str, int] = field(default_factory=dict)
    rerouted: bool = False

    @property
    def row(self) -> Row:
        """The row with its intervals."""
        mean = float(np.mean(self.values)) if self.values else None
        spread = noise_half(self.values)
        return Row(
            institution=self.institution,
            task=self.task,
            now=self.now,
            same_seed=self.values[0] if self.values else None,
            predicted=mean,
            **interval("", mean, math.hypot(spread, self.images_half)),
            **interval("noise_", mean, spread),
            routes=dict(self.routes),
            rerouted=self.rerouted,
        )


def predictions(now: Replayed, drawn: Sequence[Replayed]) -> Iterator[Predicted]:
    """One for each institution and task that has a figure in either."""
    first = drawn[0]
    keys = [(name, task) for found in (now, first) for name in found.results for task in found.results[name]]
    last = len(first.summary.tasks)
    for name, task in dict.fromkeys(keys):
        old, new = result_of(now, name, task, last), result_of(first, name, task, last)
        released = [result_of(one, name, task, last) for one in drawn]
        values = tuple(found.iou for found in released if found is not None)
        yield Predicted(
            name,
            task,
            now=old.iou if old else None,
            values=values if len(values) == len(drawn) else (),
            images_half=(images_half(new) or 0.0) if new else 0.0,
            routes=new.routes if new else {},
            rerouted=bool(old and new and dict(old.routes) != dict(new.routes)),
        )


def mean_of(figures: Sequence[Predicted]) -> Row | None:
    """The mean of the figures that leave in the run and in every draw; None if there are fewer than two."""
    both = [figure for figure in figures if figure.now is not None and figure.values]
    if len(both) < 2:
        return None
    values = np.mean([figure.values for figure in both], axis=0)
    now = float(np.mean([figure.now for figure in both if figure.now is not None]))
    half = math.hypot(*(figure.images_half for figure in both)) / len(both)
    return Predicted("all", "mean", now, tuple(float(value) for value in values), half).row


def result_of(found: Replayed, name: str, task: str, last: int) -> TaskResult | None:
    """What an institution released after the last stage; None if it released nothing then."""
    return found.results.get(name, {}).get(task) if found.stages.get(name) == last else None


def interval(prefix: str, mean: float | None, half: float) -> dict[str, Any]:
    """low and high around the mean, within 0 and 1."""
    if mean is None:
        return {f"{prefix}low": None, f"{prefix}high": None}
    return {f"{prefix}low": max(0.0, mean - half), f"{prefix}high": min(1.0, mean + half)}


def noise_half(values: Sequence[float]) -> float:
    """Half the width of Student's 90 % interval for one more draw; 0 for a single figure without noise."""
    if len(values) < 2:
        return 0.0
    from scipy.stats import t

    n = len(values)
    sd = float(np.std(values, ddof=1))
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd * math.sqrt(1 + 1 / n)


def images_half(result: TaskResult) -> float | None:
    """Half the width of the 90 % interval over test images; None where the institution tells no deviation.

    sqrt(2): one mean over such images is compared with another one.
    """
    found = result.statistics
    if found is None or found.iou.sd is None or found.units < 2:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, found.units - 1)) * found.iou.sd * math.sqrt(2 / found.units)


def costs(now: Replayed, new: Replayed) -> Iterator[Cost]:
    """Every institution of either run."""
    for name in dict.fromkeys([*now.summary.privacy, *new.summary.privacy]):
        old, changed = now.summary.privacy.get(name), new.summary.privacy.get(name)
        yield Cost(
            institution=name,
            epsilon_train_now=epsilons(old)[0],
            epsilon_train=epsilons(changed)[0],
            epsilon_metrics_now=epsilons(old)[1],
            epsilon_metrics=epsilons(changed)[1],
            refusals=dict(changed.refusals) if changed else {},
        )


def epsilons(site: Privacy | None) -> tuple[float | None, float | None]:
    """Of training and of scores, as the institution told them; 0 where its policy lets nothing leave."""
    if site is None:
        return None, None
    kept = "yes" not in (site.policy.adapter.share, site.policy.router.share)
    train = 0.0 if kept and site.epsilon_train is None else site.epsilon_train
    silent = site.policy.metrics == "never" and site.epsilon_metrics is None
    return train, 0.0 if silent else site.epsilon_metrics


def unknown(asked: Question, now: Replayed, drawn: Sequence[Replayed], ended: str) -> Iterator[str]:
    """What this answer cannot know. ended: with what another draw of the noise ended the run."""
    if ended:
        yield f"the figures of all draws of the noise: one of them ends the run ({ended})"
    yield "how another seed would change it: other splits, other initial weights"
    if now.summary.matrix["iou"] != asked.summary.matrix["iou"]:
        yield (
            "the figures of the run to the last digit: this machine or version gives others, so `now` is "
            "computed anew here"
        )
    noisy = [site.name for site in asked.new.institutions if site.policy.adds_noise]
    if noisy and len(drawn) < 3:
        yield f"how much the noise of {', '.join(noisy)} moves the figures: no time for more draws"
    told = [site.name for site in asked.new.institutions if site.policy.metrics == "noisy"]
    if told:
        yield f"how other test images of {', '.join(told)} would change the scores: they tell no deviation"
    silent = [site.name for site in asked.new.institutions if site.policy.metrics == "never"]
    if silent:
        yield f"the scores of {', '.join(silent)}: policy.metrics is never"
    if asked.start.ledger_dir:
        yield "what earlier runs of the same ledgers spent: epsilon counts this run alone"
