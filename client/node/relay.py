"""The upper half of a relay: an institution whose images are those of others, its members.

It refuses and answers as every institution does (client/release), with its own policy, log and key. What it
would compute from images it asks its members for, through the lower half (server/members.py). That half adds
their answers up: what comes here are sums and means over all members that hold a task.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from casam_core.config.scenario import Scenario
from casam_core.files import write_atomic
from casam_core.model.backbones import Backbone
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateReply,
    CalibrateRequest,
    Holding,
    RouterReply,
    RouterRequest,
    may_correct,
)
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.relayed import MembersReply, MembersRequest, PostBox
from casam_core.protocol.schema import Message
from client.institution import Institution
from client.site import Site

R = TypeVar("R", bound=Message)

PATIENCE = 0.9
"""How long a relay waits for its members, as a share of the time that the server above waits for it: so its
word arrives in time."""


class Relay(Institution):
    """An institution that stands for its members."""

    def __init__(self, site: Site, scenario: Scenario, backbone: Backbone) -> None:
        super().__init__(site, scenario, backbone)
        assert site.relay is not None
        self.box = PostBox(site.relay)

    def learn_public(self, files: Sequence[bytes]) -> None:
        """See Institution; and find the members, whose images are this institution's from now on.

        Raises RefusalError, also: bad-policy for a policy that only somebody with images can keep; bad-data
        if the members have other weights or learn another scenario; members-missing.
        """
        super().learn_public(files)
        self.box.clear()
        policy = self.site.policy
        if policy.adds_noise or policy.metrics == "noisy":
            raise RefusalError(
                Outcome.BAD_POLICY, "a relay adds no noise: its members do, each by a policy of its own"
            )
        found = self.ask_members(MembersRequest(), MembersReply)
        here, there = self.backbone, (found.backbone, found.preprocessing)
        if there != (here.digest, here.preprocessing):
            raise RefusalError(
                Outcome.BAD_DATA,
                f"weights and preprocessing: expected {here.digest} and {here.preprocessing}, found {there}",
            )
        write_atomic(self.kept, json.dumps(dict(found.to_payload().config)).encode())

    @property
    def kept(self) -> Path:
        """What the members said about themselves when they were last found."""
        return self.site.private / "members.json"

    def holdings(self) -> dict[str, Holding]:
        """The images of all members together. Raises RefusalError (members-missing) before they are found."""
        if not self.kept.exists():
            raise RefusalError(Outcome.MEMBERS_MISSING, "the members are not found yet")
        return dict(MembersReply.of(Payload(json.loads(self.kept.read_bytes()))).holdings)

    @property
    def held(self) -> Collection[str]:
        """The tasks of which a member has images."""
        return self.holdings().keys()

    def dataset(self, task: str) -> str:
        """The relay itself: whoever its members are, sums with it are about the same images of a task."""
        return f"relay/{self.name}/{task}"

    def align(self, request: AlignRequest, others: Sequence[Institution] = ()) -> AlignReply:
        """The mean of the members' layers, weighted by their images, and what the relay's policy tells."""
        reply = self.ask_members(request, AlignReply)
        told = may_correct(self.scenario, request.job, self.site.policy)
        return reply if told else replace(reply, correction=None)

    def fit_router(self, job: Job) -> RouterReply:
        """The router of all members' images together."""
        return self.ask_members(RouterRequest(job, alone=True), RouterReply)

    def router_statistics(self, job: Job) -> RouterReply:
        """The members' sufficient statistics, added up."""
        return self.ask_members(RouterRequest(job, alone=False), RouterReply)

    def calibrate(self, request: CalibrateRequest) -> CalibrateReply:
        """The members' histograms, added up."""
        return self.ask_members(request, CalibrateReply)

    def ask_members(self, request: Message, reply: type[R]) -> R:
        """One answer for all members.

        Raises RefusalError with the word of the lower half, or members-missing if it gives no answer in time.
        """
        deadlines, kind = self.scenario.deadlines, reply.kind
        seconds = deadlines.train if kind.startswith("train") else deadlines.evaluate
        if kind == MembersReply.kind:
            seconds = deadlines.connect
        patience = PATIENCE * seconds
        answer = self.box.ask(kind, request.to_payload(), self.scenario.common_digest(), patience)
        if answer is None:
            raise RefusalError(
                Outcome.MEMBERS_MISSING,
                f"{kind}: no answer within {patience:g} s in {self.box.folder}; start the members' run "
                f"with `casam deploy run ... --relay {self.box.folder}`",
            )
        word = Outcome(str(answer.config["outcome"]))
        if word != Outcome.OK:
            raise RefusalError(word, f"{kind}: events.jsonl of the members' run says why")
        return reply.of(answer)
