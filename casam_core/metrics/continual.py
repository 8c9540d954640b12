"""The continual matrix R and its figures.

R[t][j] is the score on task j after stage t; t and j follow the order of the stream. Scores are fractions;
higher is better. T is the last stage measured so far, so every figure is also defined in the middle of a
stream.

>>> matrix = ContinualMatrix(("polyp", "nuclei")).with_stage({"polyp": 0.75})
>>> matrix = matrix.with_stage({"polyp": 0.5, "nuclei": 1.0})
>>> last(matrix).value, average(matrix).value, forgetting(matrix).value, backward_transfer(matrix).value
(0.75, 0.75, 25.0, -0.25)
>>> last(ContinualMatrix(("polyp",)).with_stage({}))  # no institution measured it
Aggregate(value=None, complete=False)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Cell = float | None
"""A score, or None if it was not measured; an older score never replaces a missing one."""


@dataclass(frozen=True)
class Aggregate:
    """One figure from many cells.

    value: from the existing cells; None if there are none. complete: False if a cell that the formula needs
    is missing. A figure that needs no cell (forgetting after one stage) is undefined: None and complete.
    """

    value: float | None
    complete: bool


@dataclass(frozen=True)
class ContinualMatrix:
    """R with one row per stage and one column per task: `cells[t][j]`, None above the diagonal.

    A score above the diagonal (of a task not learned yet) is refused: it is not part of R, and it would
    raise the maximum in `forgetting`.

    Raises:
        ValueError: a task appears twice, there are more rows than tasks, a row does not have one cell per
            task, a cell above the diagonal has a score, or a score is not finite.
    """

    tasks: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"each task has one column, found {', '.join(self.tasks)}")
        if len(self.cells) > len(self.tasks):
            raise ValueError(
                f"{len(self.tasks)} tasks have as many stages at most, found {len(self.cells)} rows"
            )
        for t, row in enumerate(self.cells):
            if len(row) != len(self.tasks):
                raise ValueError(f"row {t} must have {len(self.tasks)} cells, found {len(row)}")
            if any(cell is not None for cell in row[t + 1 :]):
                raise ValueError(f"row {t} scores a task that is learned later; leave the cell None")
            if not all(cell is None or math.isfinite(cell) for cell in row):
                raise ValueError(f"row {t} has a score that is not finite; a missing score is None")

    @property
    def stages(self) -> int:
        """The number of stages measured so far."""
        return len(self.cells)

    def with_stage(self, scores: Mapping[str, Cell]) -> ContinualMatrix:
        """R with the row of the next stage; a learned task without a score becomes None.

        Raises:
            ValueError: a task of `scores` is learned later, or see the class.
        """
        seen = self.tasks[: self.stages + 1]
        strangers = sorted(set(scores) - set(seen))
        if strangers:
            raise ValueError(
                f"stage {self.stages} can score {', '.join(seen)}; found also {', '.join(strangers)}"
            )
        return ContinualMatrix(self.tasks, (*self.cells, tuple(scores.get(task) for task in self.tasks)))


def last(matrix: ContinualMatrix) -> Aggregate:
    """Last = mean_j R[T][j]: the mean over all learned tasks after the last stage."""
    return _mean(matrix.cells[-1][: matrix.stages]) if matrix.cells else Aggregate(None, True)


def average(matrix: ContinualMatrix) -> Aggregate:
    """Avg = mean_t mean_{j<=t} R[t][j]: every stage has the same weight, for any number of tasks."""
    stages = [_mean(row[: t + 1]) for t, row in enumerate(matrix.cells)]
    return Aggregate(_mean(stage.value for stage in stages).value, all(stage.complete for stage in stages))


def forgetting(matrix: ContinualMatrix) -> Aggregate:
    """FF = 100 x mean_{j<T} (max_{j<=t<T} R[t][j] - R[T][j]), in points; lower is better.

    It is negative if later stages helped. The maximum ignores missing cells. A task without earlier cells, or
    without R[T][j], is left out.
    """
    return _forgotten([row[j] for row in matrix.cells[j:]] for j in range(matrix.stages - 1))


def forgetting_at(scores: Sequence[Mapping[str, Cell]], learned: Mapping[str, int]) -> Aggregate:
    """FF of one institution: the mean over the tasks that it learned before the last stage, in points.

    Args:
        scores: by stage, by task: the institution's own scores.
        learned: by task, the number of the stage in which the institution met it, from 1.
    """
    since = (scores[stage - 1 :] for task, stage in learned.items())
    return _forgotten(
        [row.get(task) for row in rows] for task, rows in zip(learned, since, strict=True) if len(rows) > 1
    )


def _forgotten(columns: Iterable[Sequence[Cell]]) -> Aggregate:
    """100 x the mean of (best earlier score - last one). columns: by task, the scores since it was met."""
    drops: list[Cell] = []
    complete = True
    for *earlier, final in columns:
        known = [cell for cell in earlier if cell is not None]
        complete = complete and len(known) == len(earlier)
        drops.append(100.0 * (max(known) - final) if known and final is not None else None)
    mean = _mean(drops)
    return Aggregate(mean.value, mean.complete and complete)


def backward_transfer(matrix: ContinualMatrix) -> Aggregate:
    """BWT = mean_{j<T} (R[T][j] - R[j][j]), a fraction; higher is better."""
    cells = matrix.cells
    return _mean(_difference(cells[-1][j], cells[j][j]) for j in range(matrix.stages - 1))


def forward_transfer(
    matrix: ContinualMatrix, before: Mapping[str, Cell], frozen: Mapping[str, Cell]
) -> Aggregate:
    """FWT = mean_{i>1} (R[i-1][i] - b_i), a fraction; higher is better (Lopez-Paz and Ranzato 2017, eq. 4).

    Their b_i is the score at random initialisation; here it is frozen SAM's, from which every method begins.

    Args:
        matrix: R.
        before: R[i-1][i] by task: its score in the stage before it is learned.
        frozen: b_i by task.
    """
    return _mean(_difference(before.get(task), frozen.get(task)) for task in matrix.tasks[1 : matrix.stages])


def plasticity(matrix: ContinualMatrix) -> Aggregate:
    """LA = mean_i R[i][i], a fraction: the score of each task right after it is learned (Riemer et al. 2019,
    learning accuracy)."""
    return _mean(row[i] for i, row in enumerate(matrix.cells))


def intransigence(matrix: ContinualMatrix, joint: ContinualMatrix) -> Aggregate:
    """I = mean_k (a*_k - R[k][k]), a fraction; lower is better (Chaudhry et al. 2018, definition 2).

    a*_k is the score on task k of a reference that learns tasks 1..k together: the diagonal of `joint`.
    Chaudhry et al. give I_k of one k; the mean over all tasks is ours.

    Raises:
        ValueError: the two streams differ.
    """
    if matrix.tasks != joint.tasks:
        raise ValueError(f"expected the reference on {matrix.tasks}, found {joint.tasks}")
    pairs = zip(matrix.cells, joint.cells, strict=True)
    return _mean(_difference(best[k], row[k]) for k, (row, best) in enumerate(pairs))


def _difference(one: Cell, other: Cell) -> Cell:
    return None if one is None or other is None else one - other


def _mean(cells: Iterable[Cell]) -> Aggregate:
    asked = list(cells)
    known = [cell for cell in asked if cell is not None]
    return Aggregate(math.fsum(known) / len(known) if known else None, len(known) == len(asked))
