"""The in-process engine: server and institutions in one process, without Ray or a SuperLink.

Every message is serialised and read back in both directions, as on a network. The figures are equal to those
of the simulation engine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from casam_core.config.scenario import Scenario
from casam_core.protocol.wire import deserialise, serialise
from client.client_app import app as client_app
from client.client_app import forget_institutions
from server.federation.exchange import GRACE
from server.run.run_folder import RunFolder
from server.stream import run_stream

Settings = dict[str, str | int | float | bool]

FIRST_NODE = 1000
RUN_ID = 1


class InProcessGrid(Grid):
    """A Flower Grid whose nodes are contexts in this process. Pushing a message runs the client at once."""

    def __init__(self, nodes: int, settings: Settings) -> None:
        # Message() reads the sender from Flower's TaskIdentity.
        TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config=settings,
            )
            for i in range(nodes)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError("Flower asks for Message(...) instead")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        message_id = set_id(message)
        reply = deliver(message, self.contexts[message.metadata.dst_node_id])
        if reply is not None:
            self._replies[message_id] = reply
        return message_id


def deliver(message: Message, context: Context) -> Message | None:
    """The client's answer to a message; None if it came after the message's deadline."""
    sent, begun = message.content, time.monotonic()
    try:
        message.content = deserialise(serialise(sent))
        reply = client_app(message, context)
        reply.content = deserialise(serialise(reply.content))
    except Exception as error:  # Flower makes the same message of a ClientApp that raises
        reason = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    message.content = sent  # the copy would live as long as the exchange
    set_id(reply)
    return reply if time.monotonic() - begun <= message.metadata.ttl - GRACE else None


def set_id(message: Message) -> str:
    """Give a message an id, as the SuperLink does. Flower has no public function for it."""
    message_id = str(uuid.uuid4())
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


GridOf = Callable[[int, Settings], AbstractContextManager[InProcessGrid]]
"""Makes a grid for a number of nodes and the settings; it serves during a with-block."""


@contextmanager
def one_process(nodes: int, settings: Settings) -> Iterator[InProcessGrid]:
    """A grid whose institutions are served by this process."""
    yield InProcessGrid(nodes, settings)


def run_inprocess(
    scenario: Scenario,
    folder: Path,
    data_root: Path | None,
    ledgers: Path | None = None,
    *,
    resume: bool = False,
    grid_of: GridOf = one_process,
) -> None:
    """Run `scenario` in this process, or continue an interrupted run of it. Raises CasamError.

    grid_of: one process or several serve the institutions (worker_grid in scenarios/engines/workers.py).
    """
    settings: Settings = {
        "out": str(folder.parent),
        "data-root": str(data_root) if data_root else "",
        "ledger-dir": str(ledgers) if ledgers else "",
        "checkpoint": scenario.backbone.checkpoint or "",
    }
    nodes = len(scenario.institutions)
    run_folder = RunFolder(folder, scenario if resume else None)
    try:
        with grid_of(nodes, settings) as grid:
            run_stream(grid, scenario, run_folder)
    finally:
        run_folder.close()
        forget_institutions()  # a comparison runs many scenarios in one process
