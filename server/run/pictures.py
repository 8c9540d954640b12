"""The continual matrix as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from casam_core.metrics.continual import ContinualMatrix


def matrix_picture(matrix: ContinualMatrix, zero_shot: Mapping[str, float | None]) -> bytes:
    """PNG: a heat map of stages x tasks with the frozen backbone as its first row. Unseen cells are blank."""
    rows = [tuple(zero_shot.get(task) for task in matrix.tasks), *matrix.cells]
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in rows], float)
    names = ["frozen backbone", *(f"{i}: {task}" for i, task in enumerate(matrix.tasks, 1))][: len(rows)]
    figure = Figure(figsize=(2.2 + 1.1 * len(matrix.tasks), 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(matrix.tasks)), matrix.tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylabel("after stage")
    axes.set_title("IoU on the test images of each task")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)
    buffer = io.BytesIO()
    # Without Matplotlib's version in the file, equal runs write equal pictures.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
