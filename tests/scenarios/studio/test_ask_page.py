"""The studio's page of questions: the form makes settings of the command, and the answer is the command's."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.toml import apply_override
from casam_core.errors import CasamError
from scenarios.ask import own_process
from scenarios.ask.form import CLAUSES, settings_of
from tests.conftest import tiny_table

PAGE = "/ask?at=0/done"
FORM = {"at": "0/done", "institution": "north", "clause": "router", "value": "never"}


def text_of(html: str) -> str:
    """The page's text on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def answered(visitor: TestClient) -> str:
    """The text of the live part, once the process ended."""
    for _ in range(1200):
        html = visitor.get("/ask/live?at=0/done", headers={"x-part": "1"}).text
        if 'data-now="working"' not in html:
            return text_of(html)
        time.sleep(0.05)
    raise AssertionError(html)


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_clause_with_its_example_is_a_policy(clause: str) -> None:
    scenario = Scenario.model_validate(tiny_table())
    settings = settings_of(scenario, "north", clause, CLAUSES[clause].example)
    changed = scenario.model_dump(mode="json")
    for setting in settings:
        assert setting.startswith("institutions.north.policy.")
        apply_override(changed, setting)
    assert Scenario.model_validate(changed).institution("north").policy != Policy()


def test_after_stage_four_is_away_from_stage_five() -> None:
    scenario = Scenario.model_validate(tiny_table())
    assert settings_of(scenario, "west", "unlearned", "4") == [
        "institutions.west.policy.leaves_at=5",
        "institutions.west.policy.on_leave=unlearn",
    ]
    for odd in ("soon", "\N{SUPERSCRIPT TWO}", "-1", "4.0"):
        with pytest.raises(CasamError, match=f"expected a number such as 4, found '{odd}'"):
            settings_of(scenario, "west", "leaves", odd)


def test_the_page_asks_the_command_and_shows_its_answer(visitor: TestClient) -> None:
    assert "About the run done" in text_of(visitor.get(PAGE).text)
    answer = visitor.post("/ask/start", data=FORM)
    assert answer.status_code == 303
    assert visitor.post("/ask/start", data=FORM).status_code == 400  # one at a time
    html = visitor.get(answer.headers["location"]).text
    assert 'data-live="/ask/live?at=0/done"' in html
    assert '<option value="router" selected>' in html
    said = answered(visitor)
    assert "What if: institutions.north.policy.router.share=never: answered after" in said
    assert "Affected: north" in said
    assert "router-not-shared 1" in said
    assert "Full runs would tell: casam study" in said


def test_a_question_that_cannot_be_answered_says_why(visitor: TestClient) -> None:
    visitor.post("/ask/start", data=FORM | {"clause": "joins", "value": "never"})
    assert "no answer: " in (said := answered(visitor))
    assert "joins_at" in said


def test_a_stopped_question_is_said_and_can_be_asked_again(
    visitor: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(own_process, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    asking = own_process.Asking(tmp_path, ["a=1"])
    assert asking.working
    asking.stop()
    with pytest.raises(CasamError, match="was stopped; ask again"):
        asking.answer()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"institution": "nobody"}, "expected an institution of the run"),
        ({"clause": "other"}, "expected a clause of the list"),
        ({"value": ""}, "expected a value such as never"),
        ({"at": "0/images"}, "expected a run folder"),
    ],
)
def test_a_form_with_a_fault_is_said_in_a_line(
    visitor: TestClient, change: dict[str, str], says: str
) -> None:
    answer = visitor.post("/ask/start", data=FORM | change)
    assert answer.status_code in (400, 404)
    assert says in text_of(answer.text)


def test_a_run_that_is_not_finished_is_not_asked(visitor: TestClient) -> None:
    answer = visitor.get("/ask?at=0/broken-off")
    assert answer.status_code == 400
    assert "ask when it has ended" in text_of(answer.text)
