"""Who is there: the question that opens a run and every stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from casam_core.config.policy import Policy
from casam_core.protocol.compressed_text import compress_text
from casam_core.protocol.payload import Payload

SCHEMA = 3


@dataclass(frozen=True)
class IdentifyRequest:
    """Who is there? Carries the scenario (canonical JSON, compressed), the run's folder name, the fingerprint
    of the server's code (other code may not even read the scenario), and the scenario's SHA-256.

    scenario: "" for a node that was told it earlier in the run: in a large federation its list of
    institutions is long, and every one of them is asked at every stage.
    """

    scenario: str
    run: str
    code: str
    digest: str

    @staticmethod
    def telling(scenario: str, run: str, code: str) -> IdentifyRequest:
        """To a node that knows nothing yet."""
        digest = hashlib.sha256(scenario.encode()).hexdigest()
        return IdentifyRequest(compress_text(scenario), run, code, digest)

    def short(self) -> IdentifyRequest:
        """The same for a node that was told."""
        return replace(self, scenario="")

    def to_payload(self) -> Payload:
        return Payload(asdict(self))

    @staticmethod
    def of(payload: Payload) -> IdentifyRequest:
        config = payload.config
        names = ("scenario", "run", "code", "digest")
        # Other versions have other settings, and must be told so by their code and not by a missing key.
        return IdentifyRequest(*(str(config.get(name, "")) for name in names))


def are_counts(numbers: Iterable[object]) -> bool:
    """Whether these can be numbers of images, or of rounds."""
    return all(type(n) is int and 0 <= n < 10**9 for n in numbers)


@dataclass(frozen=True)
class Holding:
    """How many images of one task an institution holds."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Forecast:
    """Of `rounds` private rounds of one task, how many the institution's budget affords."""

    affordable: int
    rounds: int


@dataclass(frozen=True)
class IdentifyReply:
    """Versions of the code, the message schema, the backbone and its preprocessing; the institutions this
    node hosts, and what each of them allows.

    forecasts: by institution and task, where the policy adds noise. simulated: privacy noise is seeded.
    """

    code: str
    backbone: str
    compute: str
    institutions: Mapping[str, Mapping[str, Holding]]
    policies: Mapping[str, Policy]
    forecasts: Mapping[str, Mapping[str, Forecast]] = field(default_factory=dict)
    simulated: bool = False
    preprocessing: str = ""
    schema: int = SCHEMA

    def to_payload(self) -> Payload:
        hosted = {
            name: {task: asdict(h) for task, h in tasks.items()} for name, tasks in self.institutions.items()
        }
        forecasts = {
            name: {task: asdict(f) for task, f in tasks.items()} for name, tasks in self.forecasts.items()
        }
        return Payload(
            {
                "code": self.code,
                "schema": self.schema,
                "backbone": self.backbone,
                "preprocessing": self.preprocessing,
                "compute": self.compute,
                "institutions": json.dumps(hosted, sort_keys=True),
                "policies": json.dumps(
                    {name: policy.model_dump(mode="json") for name, policy in self.policies.items()},
                    sort_keys=True,
                ),
                "forecasts": json.dumps(forecasts, sort_keys=True),
                "simulated": self.simulated,
            }
        )

    @staticmethod
    def of(payload: Payload) -> IdentifyReply:
        config = payload.config
        hosted = json.loads(str(config["institutions"]))
        policies = json.loads(str(config["policies"]))
        if policies.keys() != hosted.keys():
            raise ValueError("expected a policy for every institution and no other")
        if not are_counts(n for tasks in hosted.values() for held in tasks.values() for n in held.values()):
            raise ValueError("expected counts of images")
        return IdentifyReply(
            code=str(config["code"]),
            backbone=str(config["backbone"]),
            compute=str(config["compute"]),
            institutions={
                name: {task: Holding(**h) for task, h in tasks.items()} for name, tasks in hosted.items()
            },
            policies={name: Policy.model_validate(policy) for name, policy in policies.items()},
            forecasts={
                name: {task: Forecast(**f) for task, f in tasks.items()}
                for name, tasks in json.loads(str(config["forecasts"])).items()
            },
            simulated=bool(config["simulated"]),
            preprocessing=str(config["preprocessing"]),
            schema=int(config["schema"]),
        )
