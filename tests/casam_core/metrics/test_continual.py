"""The continual matrix: every formula on small matrices, worked out by hand, with and without holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casam_core.metrics.continual import (
    Aggregate,
    ContinualMatrix,
    average,
    backward_transfer,
    forgetting,
    forgetting_at,
    forward_transfer,
    intransigence,
    last,
    plasticity,
)

FIGURES = (last, average, forgetting, backward_transfer)


def about(value: float, *, complete: bool = True) -> Aggregate:
    return Aggregate(pytest.approx(value), complete)


@pytest.fixture
def three() -> ContinualMatrix:
    return ContinualMatrix(
        ("a", "b", "c"),
        (
            (0.80, None, None),
            (0.90, 0.60, None),
            (0.70, 0.65, 0.50),
        ),
    )


def test_by_hand(three: ContinualMatrix) -> None:
    # (0.70 + 0.65 + 0.50) / 3 = 1.85 / 3
    assert last(three) == about(1.85 / 3)
    # Stage means 0.80, (0.90 + 0.60) / 2 = 0.75, 1.85 / 3; their mean.
    assert average(three) == about((0.80 + 0.75 + 1.85 / 3) / 3)
    # a: max(0.80, 0.90) - 0.70 = 0.20; b: 0.60 - 0.65 = -0.05; mean 0.075 = 7.5 points.
    assert forgetting(three) == about(7.5)
    # a: 0.70 - 0.80 = -0.10; b: 0.65 - 0.60 = 0.05; mean -0.025.
    assert backward_transfer(three) == about(-0.025)


def test_what_learning_gives_by_hand(three: ContinualMatrix) -> None:
    # b: 0.55 before it was learned, 0.50 frozen; c: 0.38 and 0.40. Mean of 0.05 and -0.02.
    before, frozen = {"b": 0.55, "c": 0.38}, {"a": 0.7, "b": 0.50, "c": 0.40}
    assert forward_transfer(three, before, frozen) == about(0.015)
    # The diagonal: 0.80, 0.60, 0.50.
    assert plasticity(three) == about(1.9 / 3)
    # Learned together: 0.82, 0.66, 0.47; so they lack 0.02, 0.06 and -0.03.
    joint = ContinualMatrix(three.tasks, ((0.82, None, None), (0.8, 0.66, None), (0.8, 0.6, 0.47)))
    assert intransigence(three, joint) == about(0.05 / 3)
    assert intransigence(three, three) == about(0.0)


def test_what_learning_gives_with_holes(three: ContinualMatrix) -> None:
    assert forward_transfer(three, {"b": 0.55, "c": None}, {"b": 0.5, "c": 0.4}) == about(
        0.05, complete=False
    )
    assert forward_transfer(ContinualMatrix(("a",), ((0.8,),)), {}, {"a": 0.7}) == Aggregate(None, True)
    holed = ContinualMatrix(three.tasks, ((None, None, None), *three.cells[1:]))
    assert plasticity(holed) == about(0.55, complete=False)
    assert intransigence(holed, three) == about(0.0, complete=False)


def test_a_reference_of_another_stream_is_refused(three: ContinualMatrix) -> None:
    with pytest.raises(ValueError, match="expected the reference"):
        intransigence(three, ContinualMatrix(("b", "a", "c"), three.cells))


def test_in_the_middle_of_a_stream() -> None:
    matrix = ContinualMatrix(("a", "b", "c"), ((0.8, None, None), (0.6, 0.5, None)))
    # T = 2: last (0.6 + 0.5) / 2; avg (0.8 + 0.55) / 2; a lost 0.2.
    assert last(matrix) == about(0.55)
    assert average(matrix) == about(0.675)
    assert forgetting(matrix) == about(20.0)
    assert backward_transfer(matrix) == about(-0.2)


def test_one_stage_has_nothing_to_forget() -> None:
    matrix = ContinualMatrix(("a",), ((0.8,),))
    assert last(matrix) == average(matrix) == about(0.8)
    assert forgetting(matrix) == backward_transfer(matrix) == Aggregate(None, True)


def test_no_stage_yet() -> None:
    for figure in FIGURES:
        assert figure(ContinualMatrix(("a", "b"))) == Aggregate(None, True)


def test_missing_final_cell_drops_its_task() -> None:
    matrix = ContinualMatrix(("a", "b", "c"), ((0.8, None, None), (0.9, 0.6, None), (None, 0.65, 0.5)))
    assert last(matrix) == about((0.65 + 0.5) / 2, complete=False)
    # The last stage's mean is over two tasks: 0.575.
    assert average(matrix) == about((0.8 + 0.75 + 0.575) / 3, complete=False)
    # Only b: 0.60 - 0.65.
    assert forgetting(matrix) == about(-5.0, complete=False)
    assert backward_transfer(matrix) == about(0.05, complete=False)


def test_missing_earlier_cell_leaves_the_maximum_to_the_others() -> None:
    matrix = ContinualMatrix(("a", "b", "c"), ((0.8, None, None), (None, 0.6, None), (0.7, 0.65, 0.5)))
    assert last(matrix) == about(1.85 / 3)  # The last row has no hole.
    # Stage 2 is 0.60 alone.
    assert average(matrix) == about((0.8 + 0.6 + 1.85 / 3) / 3, complete=False)
    # a: 0.80 - 0.70; b: -0.05; mean 0.025.
    assert forgetting(matrix) == about(2.5, complete=False)
    # R[a][a], R[b][b] and the last row are all there.
    assert backward_transfer(matrix) == about(-0.025)


def test_an_institution_forgets_from_the_stage_on_in_which_it_learned() -> None:
    scores = [{"a": 0.9, "b": 0.4}, {"a": 0.7, "b": 0.6}, {"a": 0.8, "b": 0.5}]
    # b came first: 0.6 - 0.5; a second: 0.7 - 0.8. What a had before it was learned does not count.
    assert forgetting_at(scores, {"b": 1, "a": 2}) == about(0.0)
    assert forgetting_at(scores, {"b": 1}) == about(10.0)
    assert forgetting_at(scores, {"a": 3}) == Aggregate(None, True)  # learned in the last stage
    assert forgetting_at([{"b": 0.4}, {}, {"b": 0.3}], {"b": 1}) == about(10.0, complete=False)


def test_missing_diagonal_cell() -> None:
    matrix = ContinualMatrix(("a", "b", "c"), ((None, None, None), (0.9, 0.6, None), (0.7, 0.65, 0.5)))
    # The first stage has no mean: (0.75 + 1.85 / 3) / 2.
    assert average(matrix) == about((0.75 + 1.85 / 3) / 2, complete=False)
    # a: 0.9 - 0.7 = 0.2; b: -0.05.
    assert forgetting(matrix) == about(7.5, complete=False)
    assert backward_transfer(matrix) == about(0.05, complete=False)


def test_all_missing() -> None:
    matrix = ContinualMatrix(("a", "b"), ((None, None), (None, None)))
    for figure in FIGURES:
        assert figure(matrix) == Aggregate(None, False)


def test_with_stage_builds_the_matrix(three: ContinualMatrix) -> None:
    matrix = ContinualMatrix(("a", "b", "c"))
    matrix = matrix.with_stage({"a": 0.8}).with_stage({"b": 0.6, "a": 0.9})
    assert matrix.stages == 2
    assert matrix.with_stage({"a": 0.7, "b": 0.65, "c": 0.5}) == three
    # A task that did not answer is a hole, not its old score.
    assert matrix.with_stage({"b": 0.65, "c": None}).cells[2] == (None, 0.65, None)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one column"):
        ContinualMatrix(("a", "a"))
    with pytest.raises(ValueError, match="1 tasks"):
        ContinualMatrix(("a",), ((0.1,), (0.2,)))
    with pytest.raises(ValueError, match="must have 2 cells"):
        ContinualMatrix(("a", "b"), ((0.1,),))
    with pytest.raises(ValueError, match="learned later"):
        ContinualMatrix(("a", "b"), ((0.1, 0.2),))
    with pytest.raises(ValueError, match="not finite"):
        ContinualMatrix(("a",), ((float("nan"),),))
    with pytest.raises(ValueError, match="found also b"):
        ContinualMatrix(("a", "b")).with_stage({"a": 0.1, "b": 0.2})
    with pytest.raises(ValueError, match="found also x"):
        ContinualMatrix(("a",), ((0.1,),)).with_stage({"x": 0.1})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_full_matrices_equal_numpy(size: int, seed: int) -> None:
    R = np.random.default_rng(seed).random((size, size))
    tasks = tuple(f"t{j}" for j in range(size))
    matrix = ContinualMatrix(
        tasks, tuple(tuple(float(R[t, j]) if j <= t else None for j in range(size)) for t in range(size))
    )
    assert last(matrix) == about(R[-1].mean())
    assert average(matrix) == about(np.mean([R[t, : t + 1].mean() for t in range(size)]))
    if size > 1:
        drops = [R[j:-1, j].max() - R[-1, j] for j in range(size - 1)]
        assert forgetting(matrix) == about(100 * np.mean(drops))
        assert backward_transfer(matrix) == about((R[-1] - np.diag(R))[:-1].mean())
