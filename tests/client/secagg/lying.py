"""A server of secure sums that can lie: real institutions, their exchanges, and a hand in between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict

from casam_core.config.scenario import Scenario
from casam_core.protocol.messages import RouterRequest
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.register import register_of_run
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    MODULUS,
    SETUP,
    SHARE_KEYS,
    SIGNATURE,
    SIGNATURES,
    SIGNERS,
    STEPS,
    UNMASK,
    SecureRequest,
    question_digest,
    shares_needed,
)
from casam_core.protocol.wire import packed, unpacked
from client.institution import Institution
from client.secagg.member import take_part
from client.site import hosted_sites
from scenarios.engines.inprocess import InProcessGrid
from tests.banks import tiny_backbone
from tests.conftest import phantom, tiny_table

SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
Lie = Callable[[str, SecureRequest], SecureRequest]
"""(receiver, honest request) -> request."""


def honest(name: str, request: SecureRequest) -> SecureRequest:
    """No lie."""
    return request


@dataclass
class Server:
    """A server and real institutions that hold the tasks of `scenario`. contexts: of their nodes."""

    scenario: Scenario
    institutions: dict[str, Institution]
    contexts: dict[str, Context] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, names: str, run: str = "run", **policy: Any) -> Server:
        """Institutions with one letter as name, which share their routers in secure sums only."""
        sites = [
            {
                "name": name,
                "data": {"polyp": phantom("polyp", 8), "histology": phantom("histology", 8)},
                "policy": {**SECRET, **policy},
            }
            for name in names
        ]
        scenario = Scenario.model_validate(tiny_table(stream=["polyp", "histology"], institutions=sites))
        InProcessGrid(1, {})
        register_of_run(folder / run, names)
        node, settings = {"partition-id": 0, "num-partitions": 1}, {"out": str(folder)}
        backbone = tiny_backbone()
        hosted = hosted_sites(scenario, run, node, settings)
        return Server(scenario, {s.institution: Institution(s, scenario, backbone) for s in hosted})

    def number(self, name: str) -> int:
        """The member's number."""
        return [site.name for site in self.scenario.institutions].index(name) + 1

    def ask(self, name: str, request: SecureRequest) -> dict[str, Any]:
        """One exchange with one institution, through the form that the wire has."""
        context = self.contexts.setdefault(name, Context(1, 1, {}, RecordDict(), {}))
        arrived = SecureRequest.of(request.to_payload())
        return dict(unpacked(take_part(self.institutions[name], arrived, context).protocol))

    def begin(self, members: Sequence[str], job: Job | None = None, **rules: Any) -> Attempt:
        """A sum of routers."""
        return Attempt(self, tuple(members), job or Job("", 1, "polyp"), rules)


@dataclass
class Attempt:
    """One sum of `members`. keys, signed: what they answered. shares: (from, to) -> encrypted."""

    server: Server
    members: tuple[str, ...]
    job: Job
    rules: Mapping[str, Any]
    keys: dict[str, list[bytes]] = field(default_factory=dict)
    signed: dict[str, bytes] = field(default_factory=dict)
    agreed: dict[str, bytes] = field(default_factory=dict)
    shares: dict[tuple[str, str], bytes] = field(default_factory=dict)
    masked: dict[str, list[bytes]] = field(default_factory=dict)

    def question(self, name: str) -> Payload:
        """What a member is asked."""
        return RouterRequest(replace(self.job, institution=name), alone=False).to_payload()

    def settings(self) -> dict[str, Any]:
        """The rules of the sum."""
        count = len(self.members)
        return {
            "stage": SETUP,
            "sample_num": count,
            "share_num": count,
            "threshold": min(shares_needed(count, 3), count),
            "clipping_range": 64.0,
            "target_range": STEPS,
            "mod_range": MODULUS,
            "max_weight": 128.0,
            **self.rules,
        }

    def request(self, name: str, step: str, protocol: Mapping[str, Any]) -> SecureRequest:
        """The honest request of one exchange."""
        asks = self.question(name)
        rules = hashlib.sha256(packed(ConfigRecord(self.settings())).tobytes()).hexdigest()
        data = packed(ConfigRecord({"stage": step, **protocol}))
        names, digest = tuple(sorted(self.members)), question_digest(asks)
        return SecureRequest(Job.of(asks), "train.router", step, data, asks, digest, rules, names)

    def ask(self, name: str, step: str, protocol: Mapping[str, Any], lie: Lie = honest) -> dict[str, Any]:
        """One exchange."""
        return self.server.ask(name, lie(name, self.request(name, step, protocol)))

    def setup(self, lie: Lie = honest, only: Sequence[str] = ()) -> None:
        """Collect public keys."""
        for name in only or self.members:
            answer = self.ask(name, SETUP, self.settings(), lie)
            self.keys[name], self.signed[name] = [answer["pk1"], answer["pk2"]], answer[SIGNATURE]

    def share(self, lie: Lie = honest, only: Sequence[str] = ()) -> None:
        """Hand out keys, collect encrypted shares."""
        for name in only or self.members:
            answer = self.ask(name, SHARE_KEYS, self.told_keys(), lie)
            for number, secret in zip(answer["dsts"], answer["ctxts"], strict=True):
                self.shares[name, self.server.scenario.institutions[number - 1].name] = secret

    def told_keys(self) -> dict[str, Any]:
        """The members' keys as a server hands them out."""
        order = sorted(self.members, key=self.server.number)
        numbered = {str(self.server.number(name)): self.keys[name] for name in order}
        return {**numbered, SIGNATURES: [self.signed[name] for name in order]}

    def collect(self, lie: Lie = honest, only: Sequence[str] = ()) -> None:
        """Hand out shares, collect masked arrays."""
        for name in only or self.members:
            others = [other for other in self.members if other != name]
            told = {
                "srcs": [self.server.number(other) for other in others],
                "ctxts": [self.shares[other, name] for other in others],
            }
            self.masked[name] = self.ask(name, COLLECT, told, lie)["masked_params"]

    def agree(self, survivors: Sequence[str], lie: Lie = honest, only: Sequence[str] = ()) -> None:
        """Collect signatures under the list of survivors."""
        for name in only or survivors:
            told = {"active_nids": [self.server.number(other) for other in survivors]}
            self.agreed[name] = self.ask(name, AGREE, told, lie)[SIGNATURE]

    def unmask(
        self, survivors: Sequence[str], lie: Lie = honest, only: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Collect shares of secrets."""
        dead = [name for name in self.members if name not in survivors]
        told = {
            "active_nids": [self.server.number(name) for name in survivors],
            "dead_nids": [self.server.number(name) for name in dead],
            SIGNERS: [self.server.number(name) for name in self.agreed],
            SIGNATURES: list(self.agreed.values()),
        }
        return {name: self.ask(name, UNMASK, told, lie) for name in only or survivors}

    def whole(self, survivors: Sequence[str] = ()) -> None:
        """All exchanges, honestly."""
        self.setup()
        self.share()
        self.collect()
        self.agree(survivors or self.members)
        self.unmask(survivors or self.members)


def with_protocol(request: SecureRequest, **changes: Any) -> SecureRequest:
    """The request with other settings of the protocol; None removes one."""
    told = {**unpacked(request.protocol), **changes}
    kept = ConfigRecord({key: value for key, value in told.items() if value is not None})
    return replace(request, protocol=packed(kept))
