"""Nothing that an exception says leaves the institution."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casam_core.errors import CheckpointError, DataError
from casam_core.payload import Outcome, Payload
from casam_core.wire import from_records
from client import outcomes
from client.outcomes import BankMismatchError


def guarded(answer: Callable[[], Payload], log: Callable[[], Path]) -> Payload:
    return from_records(outcomes.guarded(answer, log))


SECRET = "patient Doe, /data/doe.png"


def failing(error: Exception) -> Payload:
    raise error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DataError(SECRET), Outcome.BAD_DATA),
        (CheckpointError(SECRET), Outcome.BAD_CHECKPOINT),
        (BankMismatchError(SECRET), Outcome.BANK_MISMATCH),
        (ValueError(SECRET), Outcome.FAILED),
        (MemoryError(SECRET), Outcome.FAILED),
    ],
)
def test_a_failure_becomes_one_word_and_an_incident(tmp_path: Path, error: Exception, outcome: str) -> None:
    log = tmp_path / "site" / "site.log"
    payload = guarded(lambda: failing(error), lambda: log)
    assert payload.config["outcome"] == outcome
    assert set(payload.config) == {"outcome", "incident"}
    assert "Doe" not in str(payload)
    assert SECRET in log.read_text()
    assert str(payload.config["incident"]) in log.read_text()
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    payload = guarded(lambda: failing(ValueError(SECRET)), lambda: tmp_path / "file" / "site.log")
    assert payload.config["outcome"] == Outcome.FAILED


def test_an_answer_passes_with_outcome_ok(tmp_path: Path) -> None:
    payload = guarded(lambda: Payload({"a": 1}), lambda: tmp_path / "site.log")
    assert payload.config == {"a": 1, "outcome": "ok"}
    assert not (tmp_path / "site.log").exists()


def test_not_even_the_search_for_the_log_can_raise(tmp_path: Path) -> None:
    def no_log() -> Path:
        raise KeyError(SECRET)

    assert guarded(lambda: failing(ValueError(SECRET)), no_log).config["outcome"] == Outcome.FAILED


def test_what_cannot_be_sent_is_a_failure_that_quotes_nothing(tmp_path: Path) -> None:
    unsendable: Any = {"score": {"name": SECRET}}
    payload = guarded(lambda: Payload({}, {}, unsendable), lambda: tmp_path / "site.log")
    assert payload.config["outcome"] == Outcome.FAILED
    assert not payload.metrics
