"""A relay's two halves, and the box through which they exchange questions and answers.

A relay stands for several institutions, its members. Its upper half is an institution of the server above
(client/node/relay.py). Its lower half is the server of the members (server/members.py). Each half is a Flower
app of its own network, and both are on one machine. What they tell each other are files of one folder, which
belongs to the relay alone.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from casam_core.config.scenario import Name
from casam_core.files import make_folder, remove, write_atomic
from casam_core.protocol.messages import ForgetReply, Holding
from casam_core.protocol.payload import Payload, Scalar
from casam_core.protocol.schema import Amount, Message, Nested, Text
from casam_core.protocol.wire import deserialise, from_records, serialise, to_records

QUESTION, ANSWER, STOP = ".question", ".answer", "stop"

KIND, LEARNED, UNTIL = "asked-kind", "asked-learned", "asked-until"
"""Settings that the box adds to a question."""

LOOK_SECONDS = 0.05
"""Pause between two looks into the box."""


@dataclass(frozen=True)
class MembersRequest(Message):
    """Find the members."""


@dataclass(frozen=True)
class MembersReply(Message):
    """The members together: how many, the SHA-256 of their weights and the hash of their preprocessing, and
    their images by task."""

    kind: ClassVar[str] = "query.members"

    members: Annotated[int, Amount()]
    backbone: Annotated[str, Text()]
    preprocessing: Annotated[str, Text()]
    holdings: Annotated[Mapping[str, Holding], Nested(dict[Name, Holding])]


@dataclass(frozen=True)
class Deleted(Message):
    """All members deleted what was asked; their signatures stay with the lower half."""

    kind: ClassVar[str] = ForgetReply.kind


@dataclass(frozen=True)
class Asked:
    """A question in the box. learned: Scenario.common_digest of the upper half. until: when it gives up
    (time.monotonic, which all processes of a machine share)."""

    file: Path
    kind: str
    learned: str
    until: float
    question: Payload

    @property
    def waits(self) -> bool:
        """Whether the upper half still waits for an answer."""
        return self.file.exists() and time.monotonic() < self.until


class PostBox:
    """Questions and answers as files of one folder; each is whole or absent.

    Every question has a name of its own, so no answer is ever that of an earlier question. Whoever reads an
    answer, or no longer waits for it, deletes both files.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is missing, for its owner only; its files are so anyhow."""
        make_folder(folder, 0o700)
        self.folder = folder

    def ask(self, kind: str, question: Payload, learned: str, seconds: float) -> Payload | None:
        """The answer to a question; None if there is none after so many seconds."""
        asked = self.folder / f"{secrets.token_hex(16)}{QUESTION}"
        answer, until = answer_to(asked), time.monotonic() + seconds
        about: dict[str, Scalar] = {KIND: kind, LEARNED: learned, UNTIL: until}
        try:
            write(asked, replace(question, config={**question.config, **about}))
            while not answer.exists():
                if time.monotonic() > until:
                    return None
                time.sleep(LOOK_SECONDS)
            return read(answer)
        finally:
            remove(asked)
            remove(answer)

    def questions(self) -> Iterator[Asked]:
        """Every question without an answer that somebody waits for; others are deleted."""
        for file in sorted(self.folder.glob(f"*{QUESTION}")):
            if answer_to(file).exists():
                continue
            with contextlib.suppress(FileNotFoundError):  # its asker gave up just now
                asked = asked_in(file)
                if asked is None or not asked.waits:
                    remove(file)
                else:
                    yield asked

    def answer(self, asked: Asked, answer: Payload) -> None:
        """Answer a question, if anybody still waits for it."""
        if asked.waits:
            write(answer_to(asked.file), answer)

    def clear(self) -> None:
        """Delete what a process left that ended before it read its answer."""
        for suffix in (QUESTION, ANSWER):
            for file in self.folder.glob(f"*{suffix}"):
                remove(file)

    @property
    def stopped(self) -> bool:
        """Whether the operator put a file `stop` into the folder, which ends the lower half."""
        return (self.folder / STOP).exists()


def answer_to(asked: Path) -> Path:
    """The file with the answer to the question in another one."""
    return asked.with_suffix(ANSWER)


def write(file: Path, payload: Payload) -> None:
    """Write a payload; the file is whole or absent."""
    write_atomic(file, serialise(to_records(payload)))


def read(file: Path) -> Payload:
    """The payload in a file."""
    return from_records(deserialise(file.read_bytes()))


def asked_in(file: Path) -> Asked | None:
    """The question in a file; None for a file that is none. Raises FileNotFoundError."""
    try:
        found = read(file)
        config = dict(found.config)
        kind, learned, until = (config.pop(key) for key in (KIND, LEARNED, UNTIL))
        return Asked(file, str(kind), str(learned), float(until), replace(found, config=config))
    except FileNotFoundError:
        raise
    except Exception:  # reading unknown bytes can raise any exception
        return None
