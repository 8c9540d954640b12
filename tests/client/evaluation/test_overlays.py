"""Own pictures: drawn only when asked for, only at home, and nothing that leaves knows of them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casam_core.config.scenario import Scenario
from casam_core.config.toml import parse_scenario
from casam_core.errors import ScenarioError
from casam_core.protocol.audit import read_log
from client.data.dataset import LoadedSample
from client.evaluation.overlays import OURS, SAM, difference
from client.site import hosted_sites
from scenarios.engines.inprocess import run_inprocess
from tests.conftest import tiny_table, with_policies
from tests.runs import FinishedRun, private, summary_of


def with_pictures(overlays: int, **policies: dict[str, Any]) -> dict[str, Any]:
    """The tiny scenario with so many pictures per task."""
    table = with_policies(tiny_table(), **policies)
    table["evaluation"]["overlays"] = overlays
    return table


@pytest.fixture
def both(finished_run: FinishedRun) -> tuple[Path, Path]:
    """The same run without and with two pictures per task."""
    return finished_run(tiny_table()), finished_run(with_pictures(2))


def test_off_by_default(both: tuple[Path, Path]) -> None:
    assert Scenario.model_validate(tiny_table()).evaluation.overlays == 0
    assert not list(both[0].rglob("overlays"))


def test_a_page_with_so_many_pictures_of_every_task_that_is_held(both: tuple[Path, Path]) -> None:
    folder = private(both[1], "south") / "overlays"
    page = (folder / "index.html").read_text()
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 4  # two tasks
    assert all(f'src="{picture.name}"' in page for picture in pictures)
    assert page.count("sent to ") == 4
    assert page.count("frozen SAM\n") == 4


def test_a_picture_shows_the_image_five_times_with_three_colours(both: tuple[Path, Path]) -> None:
    pictures = sorted(both[1].glob("institutions/*/private/overlays/*.png"))
    # All pictures, one below the other: masks of the random backbone may be empty.
    pixels = np.concatenate([np.asarray(Image.open(picture)) for picture in pictures])
    assert pixels.shape == (len(pictures) * 64, 5 * 64 + 4 * 4, 3)
    plain, truth, frozen, ours = (pixels[:, i * 68 : i * 68 + 64] for i in range(4))

    def has(view: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> bool:
        return bool((view == colour).all(-1).any())

    assert has(truth, (40, 200, 90))
    assert has(frozen, (250, 160, 40))
    assert has(ours, (70, 130, 255)) or has(ours, (250, 160, 40))  # an unknown image is frozen SAM's
    unpainted = (plain == truth).all(-1)
    assert 0.3 < unpainted.mean() < 1  # the same image under its outlines


def test_the_difference_marks_what_only_one_of_both_has_right() -> None:
    image = np.full((1, 4, 3), 90, np.uint8)
    loaded = LoadedSample(image, np.array([[1, 1, 0, 0]], np.int32))
    frozen = [np.array([[True, False, True, False]])]
    ours = [np.array([[False, True, False, False]])]
    shown = difference(loaded, frozen, ours)
    # right: frozen only, ours only, ours only (frozen claims background), both
    assert shown.tolist() == [[list(SAM), list(OURS), list(OURS), [30, 30, 30]]]


def test_the_same_facts_are_listed_for_programs(both: tuple[Path, Path]) -> None:
    folder = private(both[1], "south") / "overlays"
    facts = json.loads((folder / "pictures.json").read_text())
    assert (facts["institution"], facts["stage"]) == ("south", 2)
    assert sorted(one["file"] for one in facts["pictures"]) == [f.name for f in sorted(folder.glob("*.png"))]
    assert f"At most {facts['most']}" in (folder / "index.html").read_text()


def test_only_the_owner_can_open_them(both: tuple[Path, Path]) -> None:
    folder = private(both[1], "north") / "overlays"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.iterdir())


def test_every_answer_is_byte_for_byte_the_one_without_pictures(both: tuple[Path, Path]) -> None:
    def answers(folder: Path) -> list[tuple[str, str, int, str, str]]:
        lines = [line.release for line in read_log(folder / "audit.jsonl")]
        return sorted((r.institution, r.kind, r.stage, r.task, r.digest) for r in lines)

    assert len(answers(both[0])) > 10
    assert answers(both[0]) == answers(both[1])


def test_the_servers_files_hold_no_picture_and_no_name_of_one(both: tuple[Path, Path]) -> None:
    names = [file.name for file in both[1].rglob("overlays/*.png")]
    mine = [f for f in both[1].rglob("*") if f.is_file() and "private" not in f.parts]
    assert {"summary.json", "events.jsonl", "audit.jsonl"} <= {f.name for f in mine}
    for file in mine:
        content = file.read_bytes()
        assert not any(name.encode() in content for name in names)
        assert file.name == "matrix.png" or not content.startswith(b"\x89PNG")


def test_who_shares_no_scores_and_who_leaves_early_have_theirs(finished_run: FinishedRun) -> None:
    folder = finished_run(with_pictures(1, north={"metrics": "never"}, west={"leaves_at": 2}))
    assert (private(folder, "north") / "overlays" / "index.html").exists()
    assert "after stage 1" in (private(folder, "west") / "overlays" / "index.html").read_text()
    assert summary_of(folder)["matrix"]["iou"][1][0] is None


def test_a_fault_of_the_pictures_costs_nobody_else_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("client.evaluation.overlays.draw_page", full_disk)
    folder = tmp_path / "run"
    run_inprocess(Scenario.model_validate(with_pictures(1)), folder, None)
    assert summary_of(folder)["complete"]["last_iou"]
    assert "no space left" in (private(folder, "north") / "site.log").read_text()


def test_a_real_site_draws_only_what_its_own_setting_says(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("")
    scenario = Scenario.model_validate(with_pictures(9))
    (tmp_path / "site.toml").write_text('[tasks.polyp]\npath = "polyp"\n')
    files = {"policy": str(tmp_path / "policy.toml"), "site": str(tmp_path / "site.toml")}
    node = {"institution": "north", "home": str(tmp_path), **files}
    assert [site.overlays for site in hosted_sites(scenario, "run", node, {})] == [0]
    assert [site.overlays for site in hosted_sites(scenario, "run", node | {"overlays": 3}, {})] == [3]


def test_their_number_is_capped() -> None:
    with pytest.raises(ScenarioError, match=r"evaluation\.overlays.*50"):
        parse_scenario(with_pictures(51), "file")
