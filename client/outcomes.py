"""What an institution says when it cannot answer: one word of a closed list and an incident number.

An exception's text may hold a path, a pixel or a patient; it stays in the institution's own log.
"""

from __future__ import annotations

import contextlib
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import RecordDict

from casam_core.errors import CasamError
from casam_core.payload import Outcome, Payload
from casam_core.wire import to_records


class BankMismatchError(CasamError):
    """The institution's copy of the bank is not the one the server means."""

    code = Outcome.BANK_MISMATCH


class OtherCodeError(CasamError):
    """The server runs another version of the product."""

    code = Outcome.OTHER_CODE


class UnknownScenarioError(CasamError):
    """A request came before the run's identify message (a restarted node)."""

    code = Outcome.UNKNOWN_SCENARIO


class UnknownInstitutionError(CasamError):
    """A request names an institution that this node does not host."""

    code = Outcome.UNKNOWN_INSTITUTION


class PoolingRefusedError(CasamError):
    """A request would train on images of several institutions together."""

    code = Outcome.POOLING_REFUSED


class SamplesNotKeptError(CasamError):
    """A request would train on a task of an earlier stage, whose images this institution let go."""

    code = Outcome.SAMPLES_NOT_KEPT


OWN_ERRORS = (
    BankMismatchError,
    OtherCodeError,
    UnknownScenarioError,
    UnknownInstitutionError,
    PoolingRefusedError,
    SamplesNotKeptError,
)

CODES = {
    "data": Outcome.BAD_DATA,
    "checkpoint": Outcome.BAD_CHECKPOINT,
    **{error.code: error.code for error in OWN_ERRORS},
}


def guarded(answer: Callable[[], Payload], log: Callable[[], Path]) -> RecordDict:
    """The answer with outcome `ok`, or a bare outcome. The reason is appended to the file `log()`.

    As records, since what cannot be one raises, too, and would quote the value.

    A log that cannot be found or written does not turn a failure into an exception that would travel.
    """
    try:
        payload = answer()
        return to_records(Payload({**payload.config, "outcome": Outcome.OK}, payload.arrays, payload.metrics))
    except Exception as error:
        incident = secrets.token_hex(4)
        outcome = CODES.get(error.code, Outcome.FAILED) if isinstance(error, CasamError) else Outcome.FAILED
        _write(log, incident, error)
        return to_records(Payload({"outcome": outcome, "incident": incident}))


def _write(log: Callable[[], Path], incident: str, error: Exception) -> None:
    detail = f"{error}\n" if isinstance(error, CasamError) else "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        path = log()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"incident {incident}: {type(error).__name__}: {detail}")
