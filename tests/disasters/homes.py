"""The federations that meet disasters: scenarios, policies, and the files of the server and of every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casam_core.config.scenario import Scenario
from casam_core.protocol.register import REGISTER, SIGNING_KEY, Keys, Register, private_pem, public_hex

SITES = ("north", "south", "west")
SERVER = "server"
STREAM = ("polyp", "histology", "cardiac_mr")

PRIVATE = {
    "adapter": {"noise": "dp"},
    "metrics": "noisy",
    "budget": {"epsilon": 8.0, "epsilon_metrics": 8.0, "delta": 0.01},
}
SECRET = {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}}
LEAVES = {"leaves_at": 3, "on_leave": "unlearn"}
CLOSED = {"adapter": {"share": "never"}, "metrics": "never"}
HELD = {"north": ("polyp",), "south": ("polyp", "histology"), "west": ("histology", "cardiac_mr")}


@dataclass(frozen=True)
class Case:
    """One federation. held: the tasks of each site. policies: by site; empty: the default."""

    name: str
    policies: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: HELD)
    stream: tuple[str, ...] = STREAM
    rounds: int = 1
    missing: str = "stop"

    @property
    def table(self) -> dict[str, Any]:
        """Its scenario."""
        return {
            "name": self.name,
            "stream": list(self.stream),
            "backbone": {"name": "tiny"},
            "training": {
                "epochs": 1,
                "rounds": self.rounds,
                "keep_best": False,
                "fallback_to_identity": False,
            },
            "router": {"kind": "nearest_mean", "folds": 2},
            "privacy": {"steps": 2, "clip": 1.0, "sampling_rate": 0.2},  # as in the folders of tests/frozen
            "deadlines": {"connect": 120.0, "train": 90.0, "evaluate": 90.0, "retries": 3},
            "participation": {"missing": self.missing},
            "institutions": [
                {"name": name, "data": {task: {} for task in tasks}} for name, tasks in self.held.items()
            ],
        }


EVERYBODY = dict.fromkeys(SITES, ("polyp", "histology"))
CASES = {
    case.name: case
    for case in (
        Case("open", rounds=2),
        Case("skip", missing="skip"),
        Case("private", {"south": PRIVATE}),
        Case("closed", {"south": CLOSED, "north": {"accept_entries": False}}),
        Case("leaver", {"south": LEAVES, "north": {"keep_samples": True}}),
        Case("secret", dict.fromkeys(SITES, SECRET), EVERYBODY, ("polyp",)),
    )
}


@cache
def scenario_of(name: str) -> Scenario:
    """The resolved scenario of a case."""
    return Scenario.model_validate(CASES[name].table)


@cache
def key_of(name: str) -> Ed25519PrivateKey:
    """A party's key, the same in every world."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


@cache
def provisioned(case: str) -> Mapping[str, Mapping[str, bytes]]:
    """By party, the files that it has before the first run."""
    register = Register(
        institutions={name: Keys(signing=public_hex(key_of(name))) for name in SITES},
        server=public_hex(key_of(SERVER)),
    ).text()
    files = {name: {REGISTER: register, SIGNING_KEY: private_pem(key_of(name))} for name in (SERVER, *SITES)}
    for name in SITES:
        tasks = {
            task: {
                "reader": "phantom", "phantom": task, "images": 30, "size": 64,
                "minimum": {"train": 1, "test": 1},
            }
            for task in CASES[case].held[name]
        }  # fmt: skip
        files[name] |= {
            "split.key": name.encode().ljust(32, b"."),
            "site.toml": tomli_w.dumps({"approve": "any", "tasks": tasks}).encode(),
            "policy.toml": tomli_w.dumps(dict(CASES[case].policies.get(name, {}))).encode(),
        }
    return files


def furnish(home: Path, case: str) -> None:
    """Put a party's files into its home, as `casam provision` and its people did."""
    home.mkdir(parents=True, exist_ok=True)
    for name, data in provisioned(case)[home.name].items():
        (home / name).write_bytes(data)


MIRRORED = "west"
"""This site reads entries from the folder of the server's first run, as from a mount."""


def node_config(home: Path, number: int) -> dict[str, str | int]:
    """What a site starts its node with."""
    mirror = home.with_name(SERVER) / "run-0" / "bank" / "entries"
    return {
        **({"mirror": str(mirror)} if home.name == MIRRORED else {}),
        "institution": home.name,
        "home": str(home),
        "policy": str(home / "policy.toml"),
        "site": str(home / "site.toml"),
        "partition-id": number,
    }
