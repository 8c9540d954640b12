"""Replay a run with another policy: the product's own code, which remembers what it computed before.

Nothing of a policy, of routing or of accounting is written a second time for questions: the stage loop runs
in this process, with institutions that remember (scenarios/ask/remembering.py). They train, score and decode
only what the change made new. Therefore an answer without noise has the bits of the full run.

Benchmarks compare with full runs: the same question, and institutions that remember nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flwr.app import Message

from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.files import write_atomic
from casam_core.model.forms import AlignmentLayer
from casam_core.protocol.messages import EvaluateReply, TaskResult
from casam_core.protocol.outcomes import Outcome
from casam_core.protocol.wire import from_records, job_of
from client.client_app import MADE_AS
from client.data.splits import SplitPart
from client.data.task_data import StoredExamples, TaskData
from client.institution import Institution
from scenarios.ask.asking import Question
from scenarios.ask.remembering import KnowsScores, SiteMemory
from scenarios.engines import Engine
from scenarios.engines.inprocess import InProcessGrid, Settings, run_inprocess
from scenarios.engines.public.frame_making import with_frame
from scenarios.engines.public.library_making import with_library
from scenarios.engines.run import Start
from server.run.summary_schema import Summary, read_summary

EVALUATE = "evaluate.stage"


class TooSlowError(RunError):
    """The answer needs more seconds than it may take."""


@dataclass
class Clock:
    """Seconds that an answer may take. pace: seconds of each training in the run, by (institution, task).

    trained: the trainings that were not in the memory. stopped: what did not fit.
    """

    limit: float
    pace: Mapping[tuple[str, str], float] = field(default_factory=dict)
    trained: list[tuple[str, str]] = field(default_factory=list)
    stopped: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begun

    def check(self, what: str, needed: float = 0.0) -> None:
        """Raise TooSlowError if work of `needed` seconds would end after the limit."""
        if self.seconds + needed > self.limit:
            self.stopped = self.stopped or what
        if self.stopped:
            raise TooSlowError(self.stopped)


class Remembering(KnowsScores):
    """An institution that remembers all it computed. `replay` makes the class for one replay."""

    clock: Clock

    @property
    def trained(self) -> Path:
        """Trained layers come from the memory and go there."""
        return self.memory.trained

    def task(self, task: str) -> TaskData:
        """The task's images; the names of their embeddings are known."""
        known = task in self._tasks
        data = super().task(task)
        if not known:
            data.keys.update(self.memory.keys(task))
        return data

    def examples(
        self, tasks: Sequence[str], part: SplitPart, layer: AlignmentLayer, others: Sequence[Institution] = ()
    ) -> StoredExamples:
        """Images to train on: asked for only if the layer is not in the memory, so this costs seconds."""
        if part == "train":
            what = (self.name, tasks[0])
            self.clock.check(f"{self.name} must train {tasks[0]} again", self.clock.pace.get(what, 0.0))
            self.clock.trained.append(what)
        return super().examples(tasks, part, layer, others)

    def keep_keys(self) -> None:
        """Remember the names of all embeddings."""
        self.memory.keep_keys({task: data.keys for task, data in self._tasks.items()})


@dataclass
class Replayed:
    """One replay. results: by institution and task, what it released after the last stage that it took part
    in. stages: the stage of these."""

    summary: Summary
    results: dict[str, dict[str, TaskResult]]
    stages: dict[str, int]


class ListeningGrid(InProcessGrid):
    """Hears every released result, and stops when the clock has run out."""

    def __init__(self, nodes: int, settings: Settings, clock: Clock | None) -> None:
        super().__init__(nodes, settings)
        self.clock = clock
        self.results: dict[str, dict[str, TaskResult]] = {}
        self.stages: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._watched(message) for message in messages]

    def _watched(self, message: Message) -> str:
        if self.clock is not None:
            self.clock.check("the replay takes longer than it may")
        kind, content = message.metadata.message_type, message.content
        message_id = self._deliver(message)
        if self.clock is not None and self.clock.stopped:  # an institution said so, and answered one word
            raise TooSlowError(self.clock.stopped)
        reply = self._replies.get(message_id)
        if kind == EVALUATE and reply is not None and not reply.has_error():
            payload = from_records(reply.content)
            if payload.config.get("outcome") == Outcome.OK:
                job = job_of(content)
                assert job is not None  # only identify names no institution
                self.results[job.institution] = dict(EvaluateReply.of(payload).results)
                self.stages[job.institution] = job.stage
        return message_id


def heard_run(
    scenario: Scenario, folder: Path, data_root: Path | None, clock: Clock | None = None
) -> Replayed:
    """Run a scenario into `folder`, silently, and keep what institutions released. Raises CasamError."""
    grids = []

    @contextlib.contextmanager
    def grid_of(nodes: int, settings: Settings) -> Iterator[InProcessGrid]:
        grids.append(ListeningGrid(nodes, settings, clock))
        yield grids[0]

    quiet = logging.getLogger("flwr")
    level, quiet.disabled = quiet.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run_inprocess(scenario, folder, data_root, grid_of=grid_of)
    finally:
        quiet.disabled = level
    return Replayed(read_summary(folder), grids[0].results, grids[0].stages)


def in_memory() -> Path | None:
    """A folder in memory, where nothing waits for a disk: half of a replay's time is this wait elsewhere."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


def replay(
    scenario: Scenario,
    memories: Mapping[str, SiteMemory],
    data_root: Path | None,
    clock: Clock,
    draw: int = 0,
) -> Replayed:
    """The scenario's run from memory. draw: 0 has the noise of `casam run`; others are other draws of it.

    Raises TooSlowError, or the CasamError with which the full run would end.
    """
    made: list[Remembering] = []

    class Replaying(Remembering):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    Replaying.memories, Replaying.clock, Replaying.draw = memories, clock, draw
    token = MADE_AS.set(Replaying)
    try:
        with tempfile.TemporaryDirectory(prefix="casam-ask-", dir=in_memory()) as folder:
            return heard_run(scenario, Path(folder) / "replay", data_root, clock)
    finally:
        MADE_AS.reset(token)
        for institution in made:
            institution.keep_keys()


def begin(scenario: Scenario, folder: Path, data_root: Path | None) -> None:
    """A finished run, silently, with the files of `casam run`. Raises CasamError."""
    heard_run(with_library(with_frame(scenario)), folder, data_root)
    start = Start(Engine.inprocess.value, str(data_root or ""), ledger_dir="", checkpoint="")
    write_atomic(folder / "order.json", json.dumps(asdict(start)).encode())


def released_by(asked: Question, folder: Path, draw: int) -> dict[str, dict[str, float]]:
    """By institution and task, the IoU that leaves after the last stage of the changed scenario's run.

    Args:
        folder: of the run; it does not exist yet.
        draw: of the noise; 0 is the one of `casam run`.

    Raises:
        CasamError: with which the run ends.
    """

    class Fresh(Institution):
        pass

    Fresh.draw = draw
    token = MADE_AS.set(Fresh)
    try:
        found = heard_run(asked.new, folder, asked.data_root)
    finally:
        MADE_AS.reset(token)
    last = len(found.summary.tasks)
    return {
        name: {task: result.iou for task, result in results.items()}
        for name, results in found.results.items()
        if found.stages[name] == last
    }
