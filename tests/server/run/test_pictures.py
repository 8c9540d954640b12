"""matrix.png: a coloured cell per figure, and blank where nothing was measured."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from casam_core.metrics.continual import ContinualMatrix
from server.run.pictures import CELL_HEIGHT, CELL_WIDTH, MARGIN, VIRIDIS, WHITE, colour_of, matrix_picture


def drawn(matrix: ContinualMatrix, zero_shot: dict[str, float | None]) -> Image.Image:
    return Image.open(io.BytesIO(matrix_picture(matrix, zero_shot)))


def test_every_figure_has_a_cell_and_unseen_ones_are_blank() -> None:
    picture = drawn(ContinualMatrix(("a", "b"), ((0.25, None), (1.0, 0.5))), {"a": 0.0, "b": 0.75})

    def corner(row: int, column: int) -> object:
        """Colour beside the corner of a cell, counted from the picture's lower right end."""
        x = picture.width - MARGIN - CELL_WIDTH * (2 - column) + 3
        return picture.getpixel((x, picture.height - MARGIN - CELL_HEIGHT * (3 - row) + 3))

    assert [corner(0, 0), corner(0, 1)] == [VIRIDIS[0], VIRIDIS[3]]
    assert [corner(1, 0), corner(1, 1)] == [VIRIDIS[1], WHITE]
    assert [corner(2, 0), corner(2, 1)] == [VIRIDIS[4], VIRIDIS[2]]


def test_colours_between_are_mixed() -> None:
    assert colour_of(0.125) == pytest.approx((63.5, 41.5, 111.5), abs=0.5)


def test_equal_matrices_are_equal_files() -> None:
    matrix = ContinualMatrix(("a",), ((0.5,),))
    assert matrix_picture(matrix, {"a": None}) == matrix_picture(matrix, {"a": None})


def test_long_names_and_few_columns_fit() -> None:
    narrow = drawn(ContinualMatrix(("a",), ((0.5,),)), {"a": None})
    wide = drawn(ContinualMatrix(("a" * 60,), ((0.5,),)), {"a" * 60: None})
    assert wide.width > narrow.width + 60
    for picture in (narrow, wide):
        right_edge = picture.crop((picture.width - MARGIN // 2, 0, picture.width, picture.height))
        assert right_edge.getcolors() == [(right_edge.width * right_edge.height, WHITE)]
