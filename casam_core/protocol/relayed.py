"""A relay's two halves, and the box through which they exchange questions and answers.

A relay stands for several institutions, its members. Its upper half is an institution of the server above
(client/node/relay.py). Its lower half is the server of the members (server/members.py). Each half is a Flower
app of its own network, and both are on one machine. What they tell each other are files of one folder, which
belongs to the relay alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from casam_core.config.scenario import Name
from casam_core.files import make_folder, remove, write_atomic
from casam_core.protocol.messages import ForgetReply, Holding
from casam_core.protocol.payload import Payload, digest_of
from casam_core.protocol.schema import Amount, Message, Nested, Text
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records

QUESTION, ANSWER, STOP = ".question", ".answer", "stop"

LOOK_SECONDS = 0.05
"""Pause between two looks into the box."""


@dataclass(frozen=True)
class MembersRequest(Message):
    """Find the members.

    Args:
        learned: Scenario.common_digest; both halves must learn the same.
        nonce: a random text, so that the question is asked anew.
    """

    learned: Annotated[str, Text()]
    nonce: Annotated[str, Text()]


@dataclass(frozen=True)
class MembersReply(Message):
    """The members together. backbone: SHA-256 of their frozen weights. holdings: their images by task."""

    kind: ClassVar[str] = "query.members"

    members: Annotated[int, Amount()]
    backbone: Annotated[str, Text()]
    holdings: Annotated[Mapping[str, Holding], Nested(dict[Name, Holding])]


@dataclass(frozen=True)
class Deleted(Message):
    """All members deleted what was asked; their signatures stay with the lower half."""

    kind: ClassVar[str] = ForgetReply.kind


class PostBox:
    """Questions and answers as files of one folder; each is whole or absent.

    A file is named by the question's content. So a question that is asked again after a crash finds its
    answer, or waits for it. Nothing else is kept: whoever reads an answer deletes both.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is missing; only its owner may read it."""
        make_folder(folder, 0o700)
        folder.chmod(0o700)
        self.folder = folder

    def ask(self, kind: str, question: Payload, seconds: float) -> Payload | None:
        """The answer to a question; None if there is none after so many seconds."""
        asked = self.folder / f"{digest_of(question)}.{kind}{QUESTION}"
        answer = answer_to(asked)
        if not asked.exists():
            write_atomic(asked, serialise(to_records(question)))
        end = time.monotonic() + seconds
        while not answer.exists():
            if time.monotonic() > end:
                return None
            time.sleep(LOOK_SECONDS)
        found = read(answer)
        remove(asked)
        remove(answer)
        return found

    def questions(self) -> Iterator[tuple[Path, str, Payload]]:
        """(file, kind, question) of every question without an answer."""
        for asked in sorted(self.folder.glob(f"*{QUESTION}")):
            if not answer_to(asked).exists():
                yield asked, asked.name.removesuffix(QUESTION).partition(".")[2], read(asked)

    @property
    def stopped(self) -> bool:
        """Whether the operator put a file `stop` into the folder, which ends the lower half."""
        return (self.folder / STOP).exists()

    def answer(self, asked: Path, answer: Payload) -> None:
        """Answer the question in a file."""
        write_atomic(answer_to(asked), serialise(to_records(answer)))


def answer_to(asked: Path) -> Path:
    """The file with the answer to the question in another one."""
    return asked.with_suffix(ANSWER)


def read(file: Path) -> Payload:
    """The payload in a file."""
    return from_records(deserialise(file.read_bytes()))
