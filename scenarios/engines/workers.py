"""The in-process engine with several processes: `casam run --engine inprocess --workers N`.

The server stays in this process. Each push of messages is divided among the workers, and returns when all
are answered. A node's state travels with its messages, as in Flower's simulation, so any worker can serve any
node. A node goes to the worker that served it last if that one is free, because its images are open there.
Institutions do not depend on each other within a push, so the figures are those of one process, bit for bit.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from flwr.app import Error, Message, RecordDict

from casam_core.errors import RunError
from casam_core.protocol.wire import deserialise, serialise
from scenarios.engines.inprocess import GridOf, InProcessGrid, Settings, deliver, one_process, set_id


@dataclass(frozen=True)
class Errand:
    """A message to one node, and the node's state, as bytes."""

    node: int
    kind: str
    ttl: float
    content: bytes
    state: bytes


@dataclass(frozen=True)
class Done:
    """A node's answer and its new state. content: None with an error, or if the answer came too late."""

    content: bytes | None
    error: tuple[int, str] | None
    state: bytes
    printed: str


@dataclass(eq=False)
class Worker:
    """A process that serves one message at a time. nodes: those that it served last."""

    process: BaseProcess
    pipe: Connection
    nodes: set[int]


def grid_with(workers: int) -> GridOf:
    """What makes the grid of a run with this many processes; one needs no worker."""
    return partial(worker_grid, workers) if workers > 1 else one_process


@contextmanager
def worker_grid(workers: int, nodes: int, settings: Settings) -> Iterator[WorkerGrid]:
    """A grid with this many worker processes, which end with the with-block."""
    # A forked server imports the client once, before any thread exists; workers are forked from it.
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["client.client_app"])
    crew = []
    try:
        for _ in range(min(workers, nodes)):
            ours, theirs = start.Pipe()
            arguments = (theirs, nodes, settings, dict(os.environ))
            process = start.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            crew.append(Worker(process, ours, set()))
        yield WorkerGrid(nodes, settings, crew)
    finally:
        for worker in crew:
            worker.pipe.close()  # an idle worker ends by this
            worker.process.terminate()
            worker.process.join()


class WorkerGrid(InProcessGrid):
    """A grid whose nodes are served by worker processes."""

    def __init__(self, nodes: int, settings: Settings, crew: list[Worker]) -> None:
        super().__init__(nodes, settings)
        self._crew = crew

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = {set_id(message): message for message in messages}
        unsent, free = deque(pushed.items()), list(self._crew)
        busy: dict[Connection, tuple[Worker, str]] = {}
        while unsent or busy:
            while unsent and free:
                worker, message_id = self._next(unsent, free)
                self._send(worker, pushed[message_id])
                busy[worker.pipe] = (worker, message_id)
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, message_id = busy.pop(pipe)
                self._take(worker, message_id, pushed[message_id])
                free.append(worker)
        return list(pushed)

    def _next(self, unsent: deque[tuple[str, Message]], free: list[Worker]) -> tuple[Worker, str]:
        """Take the next message and a free worker: the one that served its node last, if it is free."""
        message_id, message = unsent.popleft()
        node = message.metadata.dst_node_id
        worker = next((worker for worker in free if node in worker.nodes), free[0])
        free.remove(worker)
        for other in self._crew:
            other.nodes.discard(node)
        worker.nodes.add(node)
        return worker, message_id

    def _send(self, worker: Worker, message: Message) -> None:
        about = message.metadata
        state = serialise(self.contexts[about.dst_node_id].state)
        errand = Errand(about.dst_node_id, about.message_type, about.ttl, serialise(message.content), state)
        try:
            worker.pipe.send(errand)
        except OSError as error:
            raise died(worker) from error

    def _take(self, worker: Worker, message_id: str, message: Message) -> None:
        try:
            done: Done = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise died(worker) from error
        self.contexts[message.metadata.dst_node_id].state = alike(done.state)
        if done.printed:
            print(done.printed, end="")
        if done.content is not None:
            reply = Message(deserialise(done.content), reply_to=message)
        elif done.error is not None:
            reply = Message(Error(*done.error), reply_to=message)
        else:
            return
        set_id(reply)
        self._replies[message_id] = reply


@lru_cache(maxsize=8)
def alike(state: bytes) -> RecordDict:
    """The state in these bytes; nodes of a simulation mostly have equal ones, which the server only reads."""
    return deserialise(state)


def died(worker: Worker) -> RunError:
    """The fault of a worker whose process ended."""
    worker.process.join(timeout=5)
    return RunError(
        f"a worker process died (exit code {worker.process.exitcode}); if the system killed it for memory, "
        "use fewer --workers; the run can be resumed"
    )


def serve(pipe: Connection, nodes: int, settings: Settings, variables: Mapping[str, str]) -> None:
    """The work of one worker process: answer messages until the server closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    os.environ.clear()
    os.environ.update(variables)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    threading.Thread(target=end_with_the_server, daemon=True).start()
    grid = InProcessGrid(nodes, settings)
    while True:
        try:
            pipe.send(answer(pipe.recv(), grid))
        except (EOFError, OSError):
            return


def end_with_the_server() -> None:
    """End this process when the server's has ended, also in the middle of hours of training: a resumed run
    would compete with it for processors and files."""
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def answer(errand: Errand, grid: InProcessGrid) -> Done:
    """The node's answer to one message."""
    context = grid.contexts[errand.node]
    context.state = deserialise(errand.state)
    message = Message(
        deserialise(errand.content), dst_node_id=errand.node, message_type=errand.kind, ttl=errand.ttl
    )
    set_id(message)
    printed = io.StringIO()
    with redirect_stdout(printed):
        reply = deliver(message, context)
    content, error = None, None
    if reply is not None and reply.has_error():
        error = (reply.error.code, reply.error.reason or "")
    elif reply is not None:
        content = serialise(reply.content)
    state, context.state = serialise(context.state), RecordDict()  # the server keeps it
    return Done(content, error, state, printed.getvalue())
