"""The network: a Grid between one server and the nodes. It loses, delays, repeats and forges messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from casam_core.protocol.wire import deserialise, serialise
from client.client_app import app as client_app
from tests.disasters.clock import Clock
from tests.disasters.disk import Machine, PowerCutError

HEARTBEAT = 20.0
"""Seconds until the link says of a node that it is gone."""


@dataclass
class Node:
    """A site's node. number: Flower's, another after every start. memory: what Flower keeps, by run."""

    machine: Machine
    config: dict[str, str | int]
    number: int = 0
    memory: dict[int, Context] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.machine.name


@dataclass
class Sent:
    """One request on its way. number: of all requests of the world, from 1."""

    number: int
    id: str
    run: int
    kind: str
    node: int
    data: bytes
    message: Message


class Weather:
    """What the network does to a message; the world replaces these."""

    def request(self, sent: Sent) -> list[float]:
        """Seconds until each delivery of a request; empty: it is lost."""
        return [0.1]

    def reply(self, sent: Sent, data: bytes) -> list[tuple[float, bytes]]:
        """(seconds, bytes) of each arrival of a reply."""
        return [(0.1, data)]


class Network:
    """All that is connected, over all runs of a world."""

    def __init__(self, clock: Clock, nodes: Iterable[Node], weather: Weather) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id = 1, 1
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.clock, self.weather = clock, weather
        self.nodes = list(nodes)
        self.next_number = 1000
        self.working = ""
        self.sent: list[Sent] = []
        self.replies: dict[str, list[Message]] = {}
        self.left: Callable[[Node, Sent, RecordDict], None] = lambda node, sent, content: None
        self.stopped: Callable[[Node], None] = lambda node: None
        self.altered: Callable[[Node, Sent, RecordDict], None] = lambda node, sent, content: None
        for node in self.nodes:
            self.connect(node)

    def connect(self, node: Node) -> None:
        """A node starts: it has a new number and remembers nothing."""
        self.next_number += 1
        node.number, node.memory = self.next_number, {}

    def send(self, run: int, message: Message) -> str:
        """A server sends a request."""
        number = len(self.sent) + 1
        identity = f"message-{number}"
        message.metadata.__dict__["_message_id"] = identity
        about = message.metadata
        sent = Sent(
            number, identity, run, about.message_type, about.dst_node_id, serialise(message.content), message
        )
        self.sent.append(sent)
        for seconds in self.weather.request(sent):
            self.clock.at(self.clock.now + seconds, lambda: self.deliver(sent))
        self.clock.at(self.clock.now + HEARTBEAT, lambda: self.miss(sent))
        return identity

    def miss(self, sent: Sent) -> None:
        """The link answers for a node that is not there any more."""
        if all(node.number != sent.node for node in self.nodes if node.machine.on):
            gone = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=sent.message)
            self.replies.setdefault(sent.id, []).append(gone)

    def deliver(self, sent: Sent) -> None:
        """A request reaches its node."""
        for node in self.nodes:
            if node.number == sent.node and node.machine.on:
                self.handle(node, sent)

    def handle(self, node: Node, sent: Sent) -> None:
        """The node's real code answers."""
        context = node.memory.setdefault(
            sent.run, Context(sent.run, node.number, dict(node.config), RecordDict(), {})
        )
        message, self.working = sent.message, node.name
        try:
            message.content = deserialise(sent.data)
            message.metadata.__dict__["_message_id"] = sent.id
            reply = client_app(message, context)
            self.altered(node, sent, reply.content)
            self.left(node, sent, reply.content)
            data = serialise(reply.content)
        except PowerCutError:
            self.stopped(node)
            return
        except Exception as error:  # Flower makes the same message of a ClientApp that raises
            reason = f"{type(error).__name__}: {error}"
            failed = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
            self.replies.setdefault(sent.id, []).append(failed)
            return
        for seconds, arriving in self.weather.reply(sent, data):
            self.clock.at(self.clock.now + seconds, lambda arriving=arriving: self.arrive(sent, arriving))

    def arrive(self, sent: Sent, data: bytes) -> None:
        """A reply reaches the server's link."""
        try:
            content = deserialise(data)
        except Exception:
            content = RecordDict()
        reply = Message(RecordDict(), reply_to=sent.message)
        reply.content = content
        reply.metadata.__dict__["_src_node_id"] = sent.node
        reply.metadata.__dict__["_reply_to_message_id"] = sent.id
        self.replies.setdefault(sent.id, []).append(reply)


class Wire(Grid):
    """One server's end of the network, for one start of it."""

    def __init__(self, network: Network, server: Machine, run: int) -> None:
        self.network, self.server, self.number = network, server, run

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        self.server.step("ask")
        return [node.number for node in self.network.nodes if node.machine.on]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            self.server.step("send")
            sent.append(self.network.send(self.number, message))
            self.server.done()
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for identity in message_ids:
            if waiting := self.network.replies.pop(identity, None):
                self.server.step("receive")
                found.append(waiting[0])
                self.server.done()
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError
