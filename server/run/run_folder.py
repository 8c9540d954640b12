"""The run folder: the server's files. The server never reads the private files of institutions.

summary.json   figures of the run (docs/run-folder.md)
matrix.csv     the continual matrix for IoU
matrix.png     the matrix as a picture
events.jsonl   one line per event, in order
audit.jsonl    every reply that arrived, hash-chained, with its place in the institution's own log
scenario.json  the resolved scenario, canonical
stages/        the results of every stage (server.run.state)
state.json     the state from which a resumed run continues (server.run.state)
lock           held by the server that writes here
bank/          the entries (casam_core.bank.bank)
institutions/<name>/private/   written by the institutions of a simulation; the server never reads it
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError, RunInputError, plain
from casam_core.files import append_record, lock_file, make_folder, sync, write_atomic
from casam_core.protocol.audit import Anchor, AuditError, Release, broken, head_at, read_log
from casam_core.protocol.outcomes import WORDS, Outcome
from casam_core.protocol.payload import AUDIT, Job, Payload, digest_of

LONGEST_LINE = 2000
"""Characters of an event on the terminal."""


class RunFolder:
    """Writes the server's files. Every file is whole or absent; events are appended and flushed."""

    def __init__(self, path: Path, scenario: Scenario | None = None) -> None:
        """Create the folder of a new run, or with `scenario` open that of its interrupted run to continue it.

        Raises RunError if the folder belongs to another run, if its run is finished, or if another server
        writes to it.
        """
        try:
            make_folder(path)
            self._lock = lock_file(path / "lock")
        except BlockingIOError as error:
            raise RunError(
                f"run folder {path} is written to by another server; follow its run: casam watch {path}"
            ) from error
        except OSError as error:
            advice = "choose another --out" if scenario is None else "make it writable, then resume"
            raise RunError(f"run folder {path} cannot be written: {error.strerror}; {advice}") from error
        try:
            if scenario is not None:
                check_interrupted(path, scenario)
            # The first file of a run. Without this check, a failed run's bank could be taken for this run's.
            elif (path / "scenario.json").exists():
                raise RunInputError(f"run folder {path} already holds a run; choose another --out")
        except Exception:
            self._lock.close()  # another try of the same process must not find it locked
            raise
        self.path = path
        self._started = time.monotonic()

    def resume(self, seconds: float) -> None:
        """Count the seconds that the run took before it was interrupted."""
        self._started -= seconds

    def close(self) -> None:
        """Release the lock, so that another server can write here."""
        self._lock.close()

    def event(self, event: str, line: str | None = None, **facts: Any) -> None:
        """Append an event to events.jsonl; print `line`, if given, and flush it."""
        append_event(self.path, event, **facts)
        if line is not None:
            print(f"casam | server | {plain(line, LONGEST_LINE)}", flush=True)

    @contextlib.contextmanager
    def telling_failures(self) -> Iterator[None]:
        """During the with-block, an error becomes the last event, with its reason; it is raised again."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):  # for example a full disk
                self.event("failed", f"failed: {error}", error=type(error).__name__, reason=str(error))
            raise

    def sync_events(self) -> None:
        """On return, all events so far are on disk."""
        if (events := self.path / "events.jsonl").exists():
            sync(events)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file with sorted keys."""
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
        write_atomic(self.path / name, (text + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file of bytes."""
        write_atomic(self.path / name, data)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_atomic(self.path / name, text.encode())

    @property
    def elapsed(self) -> float:
        """Seconds since the folder was opened."""
        return time.monotonic() - self._started


def append_event(run: Path, event: str, **facts: Any) -> None:
    """Append one line to a run's events.jsonl."""
    append_record(run / "events.jsonl", {"time": round(time.time(), 3), "event": event, **facts})


def arrival(
    institution: str, run: str, request: str, kind: str, job: Job, payload: Payload, size: int, time: str
) -> Release:
    """A reply as a line of the server's audit log; its `clause` is the place in the institution's own log.

    request: the id of the message that it answers. size: in bytes. time: of its arrival.
    """
    return Release(
        time=time,
        institution=institution,
        run=run,
        request=request,
        kind=kind,
        stage=job.stage,
        round=job.round,
        task=job.task,
        outcome=outcome if (outcome := str(payload.config.get("outcome"))) in WORDS else Outcome.FAILED,
        clause=place if head_at(place := str(payload.config.get(AUDIT)), institution) else "",
        records=(),
        bytes=size,
        digest=digest_of(payload),
    )


def read_arrivals(path: Path) -> list[Release]:
    """The replies in the server's audit log. Raises AuditError if its chain is broken."""
    lines = read_log(path)
    if (fault := broken(lines)) is not None:
        raise AuditError(f"{path}: {fault}; this log does not prove what arrived")
    return [line.release for line in lines]


def heads_of(path: Path) -> list[Anchor]:
    """The heads of the institutions' logs that the server received. Raises AuditError for a broken log."""
    heads = [head_at(release.clause, release.institution) for release in read_arrivals(path)]
    return [head for head in heads if head is not None]


def check_interrupted(path: Path, scenario: Scenario) -> None:
    """Raise RunInputError unless `path` holds an unfinished run of this scenario."""
    try:
        known = Scenario.model_validate_json((path / "scenario.json").read_text())
    except (OSError, ValueError) as error:
        raise RunInputError(
            f"{path}: expected the folder of an interrupted run, found none to resume"
        ) from error
    if known.digest() != scenario.digest():
        raise RunInputError(
            f"{path} holds a run of scenario {known.digest()[:12]}, not of {scenario.digest()[:12]}"
        )
    if (path / "summary.json").exists():
        raise RunInputError(f"{path}: the run is finished, there is nothing to resume")
