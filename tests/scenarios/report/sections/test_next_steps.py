"""What to do next follows from the figures of the run."""

from __future__ import annotations

from pathlib import Path

from scenarios.report.reading import read_run
from scenarios.report.sections.next_steps import for_every_run, found_in
from tests.scenarios.report.making import statistics, write_run


def test_what_to_do_next_follows_from_the_figures(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"), "one")
    said = [step.text for step in found_in(run)]
    assert [text.split(".")[0] for text in said] == [
        "1 answer was missing or rejected (visitor)",
        "1 request was refused by policy",
    ]
    always = list(for_every_run(run))
    assert [step.command.split()[:2] for step in always] == [
        ["casam", x] for x in ("attack", "compare", "studio")
    ]
    assert always[0].text.startswith("north, west and heart send values without noise")  # south adds noise
    val = read_run(write_run(tmp_path / "val", evaluated_on="val"), "val")
    assert "validation images" in next(found_in(val)).text


def test_a_task_that_is_worse_beyond_chance_is_named(tmp_path: Path) -> None:
    worse = {
        "north": {"polyp": statistics(0.5, -0.1, 0.05)},
        "west": {"histology": statistics(0.7, -0.1, 0.2)},
    }
    run = read_run(write_run(tmp_path / "one", statistics=worse), "one")
    (said,) = [step for step in found_in(run) if "worse than frozen SAM" in step.text]
    assert "on polyp beyond chance" in said.text
