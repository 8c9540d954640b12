"""Bytes of entries by hand, and a short stream counted against one that sends the whole bank."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from casam_bench.speed import wire_bytes as wire
from casam_core.config.named_parts import AlignmentSpec, LowRankDecoderSpec
from casam_core.routing.routers import VaeSpec
from tests.casam_bench.surroundings import surroundings


def test_an_entrys_bytes_are_its_numbers(tmp_path: Path) -> None:
    figures = wire.entry_figures(surroundings(tmp_path))
    # low_rank 8 on 256 channels: matrices of 2 x 8 x 256 numbers in float16, a shift of 256 in float32.
    assert figures["layer_bytes"] == 2 * (2 * 8 * 256) + 4 * 256
    # A mean of 64 numbers in the public frame, and the variance of its noise.
    router = 4 * (64 + 1)
    assert figures["layer_bytes"] + router < figures["entry_bytes"] < figures["layer_bytes"] + router + 2048
    # What an institution sends up is as it was learned, all float32.
    assert figures["content_bytes"] == 4 * (2 * 8 * 256 + 256) + router
    assert figures["content_bytes"] < figures["entry_bytes_float32"] < figures["content_bytes"] + 2048
    # A Gaussian on 512 features: mean, diagonal, and 32 directions in float16.
    gaussian = figures["layer_bytes"] + 4 * 512 * 2 + 2 * 512 * 32
    assert gaussian < figures["entry_bytes_gaussian"] < gaussian + 2048
    paper = wire.real_entry(AlignmentSpec(form="casam"), VaeSpec(features="attention"), wire.EXACT)
    assert wire.layer_bytes(paper) == 4 * 3_541_007


@pytest.mark.parametrize("page", ["docs/method.md", "docs/howto-researcher.md", "CHANGELOG.md"])
def test_pages_tell_the_whole_entry_of_the_form_low_rank_decoder(page: str) -> None:
    """With the names of its 59 arrays, which are a sixth of it."""
    text = Path(__file__).parents[3].joinpath(page).read_text()
    told = re.search(r"low_rank_decoder.*?\b(\d+) KB", text, re.DOTALL)
    assert told is not None
    entry = wire.real_entry(LowRankDecoderSpec(), wire.DEFAULT)
    assert len(entry.to_bytes()) == pytest.approx(1000 * int(told[1]), abs=1000)


def test_growth_compares_late_stages_with_early_ones_that_have_warmed_up() -> None:
    assert wire.growth([9.0] * 10 + [2.0] * 10 + [7.0] * 15 + [3.0] * 10) == 1.5


def test_a_stages_seconds_end_when_it_was_measured(tmp_path: Path) -> None:
    times = [("evaluated", 1.0), ("asked", 2.0), ("evaluated", 4.5)]
    lines = [json.dumps({"event": event, "time": time}) for event, time in times]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert wire.stage_seconds(tmp_path) == [3.5]


def test_a_stream_is_counted_from_a_run(tmp_path: Path) -> None:
    scenario = wire.scenario_of(3)
    surroundings(tmp_path).engines.inprocess(scenario, tmp_path / "run")
    counted = wire.count(tmp_path / "run", scenario)
    # Stages 2 and 3 would send the one and the two entries before again: as many as the stream has in all.
    assert counted.whole_bank - counted.down == pytest.approx(counted.entries, rel=0.1)
    # An institution receives the three entries, a third of the other requests, and little else.
    assert counted.entries < counted.down < 1.5 * counted.entries
    assert counted.sent < counted.up
