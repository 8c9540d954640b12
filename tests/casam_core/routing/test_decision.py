"""The routing decision, case by case."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casam_core.routing.decision import IDENTITY, Route, decide

NAN, INF = math.nan, math.inf
TASKS = ("polyp", "heart", "spleen")


def test_the_lowest_score_wins() -> None:
    route = decide(TASKS, [3.0, 1.0, 2.0], [5.0, 5.0, 5.0])
    assert route == Route(task="heart", nearest="heart", score=1.0)
    assert route.name == "heart"


def test_beyond_the_nearest_tasks_own_threshold_the_image_is_unknown() -> None:
    # spleen would accept its 2.0, but heart is nearer and refuses its 1.0.
    route = decide(TASKS, [3.0, 1.0, 2.0], [5.0, 0.5, 5.0])
    assert route == Route(task=None, nearest="heart", score=1.0)
    assert route.name == IDENTITY == "identity"


def test_a_score_at_the_threshold_is_known() -> None:
    assert decide(["polyp"], [0.25], [0.25]).task == "polyp"
    assert decide(["polyp"], [math.nextafter(0.25, 1)], [0.25]).task is None


def test_a_tie_goes_to_the_task_learned_first() -> None:
    assert decide(TASKS, [2.0, 1.0, 1.0], [5.0] * 3).task == "heart"


def test_an_empty_bank_sends_everything_to_identity() -> None:
    assert decide([], [], []) == Route(task=None, nearest=None, score=None)
    assert decide([], [], []).name == IDENTITY


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_number_never_wins_wherever_it_stands(place: int) -> None:
    scores, thresholds = [4.0, 4.0], [5.0] * 3
    scores.insert(place, NAN)
    route = decide(TASKS, scores, thresholds)
    assert route.task == next(task for i, task in enumerate(TASKS) if i != place)
    assert route.score == 4.0


def test_without_any_number_the_image_is_unknown() -> None:
    assert decide(TASKS, [NAN] * 3, [5.0] * 3) == Route(task=None, nearest=None, score=None)


def test_a_threshold_that_is_no_number_accepts_nothing() -> None:
    assert decide(["polyp"], [-100.0], [NAN]).task is None


def test_infinite_scores_are_beyond_every_finite_threshold() -> None:
    assert decide(TASKS, [INF, INF, INF], [1e300] * 3).task is None


SCORE = st.one_of(st.floats(-10, 10), st.sampled_from([NAN, INF, -INF]))


@given(st.lists(st.tuples(SCORE, st.floats(-10, 10)), min_size=1, max_size=8))
def test_the_decision_follows_its_definition(pairs: list[tuple[float, float]]) -> None:
    tasks = [f"task-{i}" for i in range(len(pairs))]
    route = decide(tasks, [score for score, _ in pairs], [tau for _, tau in pairs])
    numbers = [(score, i) for i, (score, _) in enumerate(pairs) if not math.isnan(score)]
    if not numbers:
        assert route.task is None
        return
    score, best = min(numbers)
    assert route.nearest == tasks[best]
    assert route.score == score
    assert route.task == (tasks[best] if score <= pairs[best][1] else None)
