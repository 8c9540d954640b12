"""Click-to-prompt: the masks are those of the Segmenter, an image is encoded once, and a slip is said in
a line.
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from casam import Segmenter, backbone_for, load_bank
from casam_core.errors import PromptError
from casam_use.run_bank import bank_of_run
from scenarios.studio.pages import Studio
from scenarios.studio.prompting import MOST_OPEN, numbers
from scenarios.studio.shelf import Shelf
from tests.conftest import tiny_table
from tests.runs import FinishedRun


@pytest.fixture
def opened(visitor: TestClient) -> str:
    """The key of the open image."""
    answer = visitor.post("/try/open", data={"image": "0/images/image.png", "bank": "0/done"})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"].partition("open=")[2]


def test_frozen_sam_and_the_routed_answer_stand_side_by_side(visitor: TestClient, opened: str) -> None:
    part = {"x-part": "1"}
    html = visitor.post("/try/segment", data={"open": opened, "boxes": "5, 5, 30, 30"}, headers=part).text
    assert re.findall(r"<h3>(.*?)</h3>", html)[0] == "frozen SAM"
    assert re.findall(r"<h3>(.*?)</h3>", html)[1].startswith("routed to ")
    assert len(re.findall(r"<p>\d+\.\d\d s\.", html)) == 2  # measured seconds of each answer
    assert "<html" not in html


def test_chosen_entries_are_compared(visitor: TestClient, opened: str) -> None:
    form = {"open": opened, "points": "20, 20", "entry": ["polyp", "polyp"]}
    html = visitor.post("/try/segment", data=form, headers={"x-part": "1"}).text
    assert re.findall(r"<h3>(.*?)</h3>", html)[2:] == ["entry polyp"]


def test_the_saved_mask_is_that_of_the_python_api(visitor: TestClient, opened: str, tiny_runs: Path) -> None:
    visitor.post("/try/segment", data={"open": opened, "boxes": "5 5 30 30\n10 10 40 40", "entry": "polyp"})
    bank = load_bank(tiny_runs / "done" / "bank")
    image = np.asarray(Image.open(tiny_runs / "images" / "image.png"))
    segmenter = Segmenter(backbone_for(bank, "tiny"), bank)
    for entry, task in (("identity", "identity"), ("routed", None), ("polyp", "polyp")):
        saved = visitor.get("/try/mask", params={"open": opened, "entry": entry})
        assert "attachment" in saved.headers["content-disposition"]
        expected = segmenter.predict(image, [(5, 5, 30, 30), (10, 10, 40, 40)], task=task).labels
        assert (np.asarray(Image.open(io.BytesIO(saved.content))) == expected).all()


def test_a_known_embedding_gives_the_same_bits(tiny_runs: Path) -> None:
    bank = load_bank(tiny_runs / "done" / "bank")
    segmenter = Segmenter(backbone_for(bank, "tiny"), bank)
    image = np.asarray(Image.open(tiny_runs / "images" / "image.png"))
    once = segmenter.predict(image, [(5, 5, 30, 30)])
    again = segmenter.predict(image, [(5, 5, 30, 30)], embedding=segmenter.embed(image))
    assert (once.masks_NHW == again.masks_NHW).all()
    assert once.route == again.route


def test_an_image_is_encoded_once(
    studio: Studio, visitor: TestClient, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("casam_use.segmenter.Segmenter.embed", again)
    assert visitor.post("/try/segment", data={"open": opened, "points": "20 20"}).status_code == 303


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        (
            {"points": "20 20\n25 22", "negatives": "2 2"},
            {"points": [(20, 20), (25, 22), (2, 2)], "labels": [1, 1, 0]},
        ),
        (
            {"boxes": "5 5 30 30", "points": "20 20", "one": "1"},
            {"boxes": [(5, 5, 30, 30)], "points": [(20, 20)], "one_object": True},
        ),
    ],
)
def test_all_prompts_can_be_of_one_object(
    visitor: TestClient, opened: str, tiny_runs: Path, form: dict[str, str], asked: dict[str, Any]
) -> None:
    assert visitor.post("/try/segment", data={"open": opened, **form}).status_code == 303
    saved = visitor.get("/try/mask", params={"open": opened, "entry": "identity"})
    bank = load_bank(tiny_runs / "done" / "bank")
    image = np.asarray(Image.open(tiny_runs / "images" / "image.png"))
    want = Segmenter(backbone_for(bank, "tiny"), bank).predict(image, task="identity", **asked)
    assert len(want.masks_NHW) == 1
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(saved.content))), want.labels)


def test_an_uploaded_image_is_opened(visitor: TestClient, tiny_runs: Path) -> None:
    content = (tiny_runs / "images" / "image.png").read_bytes()
    answer = visitor.post("/try/upload?name=my%20scan.png&bank=0/done", content=content)
    assert answer.text.startswith("/try?open=")
    assert "my scan.png" in visitor.get(answer.text).text


@pytest.mark.parametrize(
    ("name", "content"), [("x.png", b"no image"), ("x.svg", b"<svg/>"), ("../../x.png", b"")]
)
def test_what_is_no_image_is_refused_in_a_line(visitor: TestClient, name: str, content: bytes) -> None:
    answer = visitor.post(f"/try/upload?name={name}&bank=0/done", content=content, headers={"x-part": "1"})
    assert answer.status_code == 400
    assert "expected" in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "form", [{}, {"boxes": "1, 2, 3"}, {"boxes": "1 2 x 4"}, {"boxes": "60 40 70 90"}, {"points": "-1 4"}]
)
def test_a_prompt_that_does_not_fit_is_refused_in_a_line(
    visitor: TestClient, opened: str, form: dict[str, str]
) -> None:
    answer = visitor.post("/try/segment", data={"open": opened, **form}, headers={"x-part": "1"})
    assert answer.status_code == 400
    assert "expected" in answer.text


def test_the_image_and_the_masks_are_pictures(visitor: TestClient, opened: str) -> None:
    visitor.post("/try/segment", data={"open": opened, "boxes": "5 5 30 30"})
    plain = visitor.get("/try/image", params={"open": opened}).content
    drawn = visitor.get("/try/image", params={"open": opened, "entry": "identity"}).content
    assert Image.open(io.BytesIO(plain)).size == Image.open(io.BytesIO(drawn)).size == (64, 48)


def test_old_images_are_forgotten(visitor: TestClient, opened: str) -> None:
    for _ in range(MOST_OPEN):
        visitor.post("/try/open", data={"image": "0/images/image.png", "bank": "0/done"})
    answer = visitor.get(f"/try?open={opened}")
    assert answer.status_code == 400
    assert "no longer open" in answer.text


def test_numbers_of_a_text_field() -> None:
    assert numbers("1, 2, 3, 4\n\n5 6 7 8;", 4) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(PromptError, match="expected 2 numbers in a line, found '1, 2, 3'"):
        numbers("1, 2, 3", 2)


def test_one_layer_for_all_tasks_is_the_last_stages(finished_run: FinishedRun, tmp_path: Path) -> None:
    """As `casam predict --bank RUN` and `Run.bank` have it; the run's own bank folder is empty."""
    folder = tmp_path / "runs"
    shutil.copytree(finished_run(tiny_table(method="sequential")), folder / "sequential")
    (folder / "sequential" / "bank" / "stage-old").mkdir()  # somebody's copy
    run = Shelf.of([folder]).run("0/sequential")
    assert run.bank is not None
    assert run.bank.name == "stage-2"
    assert load_bank(run.bank).keys() == {"shared"}
    assert bank_of_run(run.path) == run.bank
