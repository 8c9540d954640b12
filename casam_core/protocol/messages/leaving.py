"""Deleting what a leaving institution had a part in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from casam_core.protocol.payload import Job, Payload


@dataclass(frozen=True)
class ForgetRequest:
    """Delete all copies of these entries and what was computed from them: their holder has left.

    entries: digests. leaver: whose work was in them.
    """

    job: Job
    leaver: str
    entries: Sequence[str]

    def to_payload(self) -> Payload:
        config = {**self.job.config(), "leaver": self.leaver, "entries": ",".join(self.entries)}
        return Payload(config)

    @staticmethod
    def of(payload: Payload) -> ForgetRequest:
        config = payload.config
        return ForgetRequest(Job.of(payload), str(config["leaver"]), str(config["entries"]).split(","))


@dataclass(frozen=True)
class ForgetReply:
    """The institution's signed word that it did (casam_core.protocol.signing). public: its key."""

    public: str
    signature: str

    def to_payload(self) -> Payload:
        return Payload({"public": self.public, "signature": self.signature})

    @staticmethod
    def of(payload: Payload) -> ForgetReply:
        return ForgetReply(str(payload.config["public"]), str(payload.config["signature"]))


def purge_statement(institution: str, run: str, leaver: str, entries: Sequence[str]) -> dict[str, Any]:
    """What an institution signs when it has deleted its copies."""
    return {"institution": institution, "run": run, "leaver": leaver, "deleted": sorted(entries)}
