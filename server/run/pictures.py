"""The continual matrix as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from casam_core.metrics.continual import ContinualMatrix

VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""RGB at IoU 0, 0.25, 0.5, 0.75 and 1; colours between them are mixed."""
CELL_WIDTH, CELL_HEIGHT, MARGIN, TEXT = 132, 60, 16, 18
"""In pixels. A cell is wider where a task's name needs it."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def matrix_picture(matrix: ContinualMatrix, zero_shot: Mapping[str, float | None]) -> bytes:
    """PNG bytes: a heat map, stages by tasks, first row the frozen backbone. Unseen cells are blank."""
    rows = [tuple(zero_shot.get(task) for task in matrix.tasks), *matrix.cells]
    names = ["frozen backbone", *(f"{i}: {task}" for i, task in enumerate(matrix.tasks, 1))][: len(rows)]
    font = ImageFont.load_default(TEXT)
    left = 2 * MARGIN + round(max(map(font.getlength, names)))
    top = 3 * MARGIN + 2 * TEXT
    width = max(CELL_WIDTH, MARGIN + round(max(map(font.getlength, matrix.tasks))))
    title = "IoU on the test images of each task, after each stage"
    across = max(left + width * len(matrix.tasks), MARGIN + round(font.getlength(title))) + MARGIN
    picture = Image.new("RGB", (across, top + CELL_HEIGHT * len(rows) + MARGIN), WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, BLACK, font)
    for column, task in enumerate(matrix.tasks):
        draw.text((left + width * (column + 0.5), top - MARGIN / 2), task, BLACK, font, anchor="md")
    for row, (name, values) in enumerate(zip(names, rows, strict=True)):
        y = top + CELL_HEIGHT * row
        draw.text((left - MARGIN / 2, y + CELL_HEIGHT / 2), name, BLACK, font, anchor="rm")
        for column, value in enumerate(values):
            if value is None:
                continue
            x = left + width * column
            draw.rectangle((x, y, x + width - 1, y + CELL_HEIGHT - 1), colour_of(value))
            middle = (x + width / 2, y + CELL_HEIGHT / 2)
            draw.text(middle, f"{value:.3f}", BLACK if value > 0.6 else WHITE, font, anchor="mm")
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def colour_of(value: float) -> tuple[int, int, int]:
    """The RGB of an IoU in [0, 1]."""
    at = np.linspace(0, 1, len(VIRIDIS))
    red, green, blue = (round(np.interp(value, at, channel)) for channel in zip(*VIRIDIS, strict=True))
    return red, green, blue
