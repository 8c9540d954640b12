"""What each page shows of real (tiny) runs."""

from __future__ import annotations

import fcntl
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from casam_core.config.toml import read_policy
from casam_core.protocol.fingerprint import ROOT
from scenarios.studio.explained import policy_page
from scenarios.studio.live_page import sentence, steps_in, view_of
from scenarios.studio.pages import Studio
from scenarios.studio.shelf import RunItem
from scenarios.studio.started import Step


def shown(html: str) -> str:
    """The page's text on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_home_lists_runs_and_scenarios(visitor: TestClient) -> None:
    text = shown(visitor.get("/").text)
    assert "done tiny completed" in text
    assert "broken-off" in text
    assert "stopped" in text
    assert "quickstart , 4 minutes on two cores" in text


def test_an_interrupted_run_shows_its_stages_and_can_be_continued(visitor: TestClient) -> None:
    html = visitor.get("/run?at=0/broken-off").text
    assert 'data-state="stopped"' in html
    assert 'action="/run/resume"' in html
    assert "1. polyp" in shown(html)
    assert "north" in shown(html)


def test_a_run_that_another_terminal_writes_is_working_and_not_offered(
    visitor: TestClient, tiny_runs: Path
) -> None:
    with (tiny_runs / "broken-off" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        html = visitor.get("/run?at=0/broken-off").text
    assert 'data-state="working"' in html
    assert "Another terminal works on this run" in html
    assert 'action="/run/resume"' not in html


def test_a_finished_run_shows_headline_matrix_and_timeline(visitor: TestClient, tiny_runs: Path) -> None:
    html = visitor.get("/run?at=0/done").text
    summary = json.loads((tiny_runs / "done" / "summary.json").read_text())
    assert f"{summary['last_iou']:.3f}" in shown(html)
    assert 'class="heat"' in html
    for value in summary["matrix"]["iou"][-1]:
        assert f"{value:.3f}" in html
    assert "Who did what" in html
    assert "data-live" not in html


def test_the_report_is_the_one_of_the_command(visitor: TestClient) -> None:
    html = visitor.get("/report?at=0/done").text
    assert "casam report" in html
    assert "How to" in html or "reproduce" in html


def test_steps_of_a_simulation_come_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "flower.log"
    log.write_text("ray says\nx casam | north | train polyp | 2/48\ncasam | north | train polyp | 3/48\n")
    assert steps_in(log) == {"north": Step("train polyp", 3, 48)}
    assert steps_in(tmp_path / "none.log") == {}


def test_the_sentence_of_a_run(tiny_runs: Path) -> None:
    view = view_of(tiny_runs / "done")
    assert view.started is not None
    assert view.last is not None
    assert sentence(view, "completed", view.last).startswith("completed after ")
    view.status, view.ends = "running", {}
    assert "time left is known after the first stage" in sentence(view, "working", view.started + 5)
    view.ends = {0: view.started, 1: view.started + 10}
    assert sentence(view, "working", view.started + 13).endswith("13 s so far, about 7.0 s left")
    assert sentence(view, "working", view.started + 99).endswith("longer than the mean of the earlier stages")


def test_a_bank_is_explained(visitor: TestClient) -> None:
    text = shown(visitor.get("/bank?at=0/done").text)
    assert "polyp" in text
    assert "The router gives an image to the entry with the best score" in text
    assert visitor.get("/bank?at=0/broken-off").status_code == 404


def test_an_audit_log_is_whole_or_not_trusted(visitor: TestClient, tiny_runs: Path) -> None:
    log = tiny_runs / "done" / "institutions" / "north" / "private" / "audit.jsonl"
    text = shown(visitor.get("/audit?at=0/done").text)
    assert text.count("is whole, and what it lists is what the server received") == 3
    before = log.read_bytes()
    try:
        log.write_bytes(b"".join(before.splitlines(keepends=True)[:-2]))
        assert "Do not trust this log" in shown(visitor.get("/audit?at=0/done").text)
        log.write_bytes(b"")  # an emptied log lists nothing, and so nothing wrong
        assert "is missing: the log was cut after line 0" in shown(visitor.get("/audit?at=0/done").text)
    finally:
        log.write_bytes(before)
    assert "Do not trust this log" not in shown(visitor.get("/audit?at=0/done").text)


def test_a_report_of_nothing_and_too_many_fields_are_said(visitor: TestClient) -> None:
    assert visitor.get("/report").status_code == 404
    many = visitor.get("/run?" + "at=0/done&" * 300)
    assert (many.status_code, "expected at most 200 fields" in many.text) == (413, True)


def test_two_runs_are_compared_and_one_is_not_compared_with_itself(visitor: TestClient) -> None:
    assert visitor.get("/compare?first=0/done&second=0/done").status_code == 400
    assert "Two finished runs are needed" in visitor.get("/compare").text


def test_a_policy_says_what_leaves_and_what_it_costs(tmp_path: Path) -> None:
    open_ = dict(policy_page("quickstart", "endoscopy-centre", ""))
    assert "no epsilon limits what they say" in str(open_["What it costs in privacy"])
    private = 'metrics = "never"\nrouter = {share = "never"}\nadapter = {noise = "dp"}\n'
    private += "budget = {epsilon = 3.0, delta = 0.001}\n"
    (tmp_path / "policy.toml").write_text(private)
    read_policy(tmp_path / "policy.toml")  # the same text is a policy file
    closed = dict(policy_page("mixed-policy", "heart-centre", private))
    assert "metrics = never" in str(closed["What can leave, and who sees it"])
    assert "epsilon at most 3" in str(closed["What it costs in privacy"])
    assert "test scores" in str(closed["What never leaves"])


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("metrics = ", "expected TOML"),
        ('metrics = "sometimes"', "metrics"),
        ('adapter = {noise = "dp"}', "needs a budget"),
    ],
)
def test_a_policy_with_a_fault_is_said_in_a_line(visitor: TestClient, policy: str, says: str) -> None:
    form = {"scenario": "quickstart", "institution": "endoscopy-centre", "policy": policy, "words": "1"}
    answer = visitor.post("/policy/words", data=form)
    assert answer.status_code == 400
    assert says in shown(answer.text)


def test_the_gallery_sorts_by_gain_and_says_that_nothing_leaves(visitor: TestClient) -> None:
    html = visitor.get("/gallery").text
    assert "They never leave this machine" in html
    gains = [float(found) for found in re.findall(r"([+-]\d+\.\d) points", html)]
    assert len(gains) >= 2
    assert gains == sorted(gains, reverse=True)
    losses = [
        float(found) for found in re.findall(r"([+-]\d+\.\d) points", visitor.get("/gallery?order=loss").text)
    ]
    assert losses == sorted(gains)


def test_every_panel_of_a_picture_is_a_piece_of_the_institutions_file(
    visitor: TestClient, tiny_runs: Path
) -> None:
    folder = next((tiny_runs / "done").glob("institutions/*/private/overlays"))
    file = sorted(folder.glob("*.png"))[0]
    whole, at = np.asarray(Image.open(file)), f"0/{file.relative_to(tiny_runs).as_posix()}"
    for number in range(5):
        answer = visitor.get("/gallery/panel", params={"at": at, "panel": str(number)})
        panel = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert (panel == whole[:, number * 68 : number * 68 + 64]).all()
    for bad in ("5", "-1", "x", ""):
        assert visitor.get("/gallery/panel", params={"at": at, "panel": bad}).status_code == 404


def test_the_gallery_serves_no_other_file(visitor: TestClient) -> None:
    for at in ("0/images/image.png", "0/done/matrix.png", "0/done/institutions/north/private/audit.jsonl"):
        assert visitor.get("/gallery/panel", params={"at": at, "panel": "0"}).status_code == 404


def test_a_run_with_damaged_files_stays_in_the_list(
    studio: Studio, visitor: TestClient, tiny_runs: Path
) -> None:
    folder = tiny_runs / "damaged"
    folder.mkdir()
    try:
        for name in ("scenario.json", "summary.json", "events.jsonl"):
            (folder / name).write_text("{")
        assert any(run.name == "damaged" for run in studio.shelf.runs())
        assert "damaged files" in visitor.get("/").text
        assert visitor.get("/run?at=0/damaged").status_code == 400
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_a_run_item_knows_its_bank(tiny_runs: Path) -> None:
    assert RunItem("0/done", tiny_runs / "done").bank == tiny_runs / "done" / "bank"
    assert RunItem("0/broken-off", tiny_runs / "broken-off").bank is None


def test_the_pictures_of_the_pages_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    pages = (ROOT / "docs" / "studio.md").read_text() + (ROOT / "README.md").read_text()
    assert len(pictures) >= 8
    assert [file.name for file in pictures if f"pictures/{file.name}" not in pages] == []
    assert sum(file.stat().st_size for file in pictures) < 1_000_000
