"""What a faster variant is worth, by hand: compiling counts, so it must pay within a thousand images."""

import pytest

from casam_bench.speed.encode import ratios


def test_compiling_counts_and_the_faster_variant_of_a_thousand_images_is_taken() -> None:
    found = ratios({"plain": 2.0, "fast": 1.0, "compiled": 0.5}, compile_seconds=100)
    assert found["ratio_lite_medsam_fast"] == 2
    assert found["ratio_lite_medsam_compiled"] == 4
    assert found["pays_after"] == 200  # 100 s over half a second saved an image
    assert found["ratio_lite_medsam"] == pytest.approx(2000 / 600)


def test_compiling_that_takes_longer_than_it_saves_is_left_out() -> None:
    found = ratios({"plain": 2.0, "fast": 1.0, "compiled": 0.9}, compile_seconds=200)
    assert found["ratio_lite_medsam"] == 2
    assert found["pays_after"] == pytest.approx(2000)


def test_a_variant_that_is_not_faster_never_pays() -> None:
    assert "pays_after" not in ratios({"plain": 2.0, "fast": 1.0, "compiled": 1.0}, compile_seconds=1)


def test_without_a_compiler_there_are_two_sides() -> None:
    assert ratios({"plain": 3.0, "fast": 1.0}, compile_seconds=0) == {
        "plain_seconds": 3.0,
        "fast_seconds": 1.0,
        "ratio_lite_medsam_fast": 3.0,
        "ratio_lite_medsam": 3.0,
    }
