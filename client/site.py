"""Facts of the site. They come from the node, never from the server or the scenario's author.

In deployment a SuperNode is started with --node-config 'institution="a" data-root="/data" home="/home"'
and hosts that one institution. In a simulation one node hosts every num-partitions-th institution of the
scenario, so any number of nodes is possible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_policy
from casam_core.errors import DataError, PolicyError, RunError
from casam_core.files import casam_home
from casam_core.protocol.register import REGISTER, SIGNING_KEY
from client.data.splits import kept_key, simulated_key
from client.node.incidents import NodeConfig

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Site:
    """The files, the policy and the settings of one institution.

    Args:
        store: folder of embeddings, shared by all runs.
        public: folder of embeddings of public images; all simulated institutions share it.
        private: folder of this run's files at the institution. run: name of the run.
        audit: log of all releases; ledger: log of private releases. In deployment both cover all runs.
        key: private key for signed statements. register: all institutions' public keys.
        sums: log of the secure sums without noise that this institution took part in.
        split_key: secret that decides the split.
        confined: whether the scenario's data paths must stay below data_root, because the site did not write
            them.
        policy: what this institution allows; in deployment from its own file.
        checkpoint: file of the backbone's weights.
        device: overrides the scenario's compute.device.
        overlays: pictures per task for the institution only.
    """

    institution: str
    data_root: Path | None
    store: Path
    public: Path
    private: Path
    audit: Path
    ledger: Path
    key: Path
    register: Path
    sums: Path
    split_key: bytes
    run: str
    confined: bool
    policy: Policy
    checkpoint: str | None = None
    device: str | None = None
    overlays: int = 0

    def localised(self, scenario: Scenario) -> Scenario:
        """The scenario with this site's own checkpoint and device."""
        backbone = scenario.backbone.model_copy(update={"checkpoint": self.checkpoint})
        compute = scenario.compute.model_copy(update={"device": self.device or scenario.compute.device})
        return scenario.model_copy(update={"backbone": backbone, "compute": compute})

    @property
    def simulated(self) -> bool:
        """Whether this institution is part of a simulation; its privacy noise is then seeded."""
        return not self.confined

    @property
    def log(self) -> Path:
        """Log of failures with their reasons, for the institution only."""
        return self.private / "site.log"

    def check_path(self, path: str | None) -> None:
        """Raise DataError for a path outside this site's data folder."""
        if path is not None and self.confined:
            check_below(path, self.data_root)


def check_below(path: str, data_root: Path | None) -> None:
    """Raise DataError for a data path outside the site's data folder, or if the site has none."""
    if data_root is None:
        raise DataError("this node has no data-root; start it with --node-config 'data-root=\"FOLDER\"'")
    root = data_root.resolve()
    if not (root / Path(path).expanduser()).resolve().is_relative_to(root):
        raise DataError(f"{path}: expected a path below this site's data-root, found one outside it")


def hosted_sites(scenario: Scenario, run: str, node: NodeConfig, settings: NodeConfig) -> list[Site]:
    """The sites this node answers for, in the scenario's order; none if its institution does not take part.

    Args:
        node: the SuperNode's own configuration.
        settings: the run's configuration, which only a simulation uses.

    Raises:
        RunError: the run name is not a plain folder name.
        PolicyError: a real site has no valid policy file.
        DataError: a real site's key for splits cannot be used.
    """
    if not RUN_NAME.fullmatch(run):
        raise RunError(f"run name: expected letters, digits, '.', '_' and '-', found {run!r}")
    names = [spec.name for spec in scenario.institutions]
    if "institution" in node:
        if node["institution"] not in names:
            return []
        home = Path(str(node.get("home", casam_home()))).expanduser()
        return [
            Site(
                institution=str(node["institution"]),
                data_root=_path(node.get("data-root")),
                store=home / "embeddings",
                public=home / "embeddings",
                # Two scenarios with the same run name must not read each other's results.
                private=home / "runs" / f"{run}-{scenario.digest()[:12]}",
                audit=home / "audit.jsonl",
                ledger=home / "ledger.jsonl",
                key=_path(node.get("signing-key")) or home / SIGNING_KEY,
                register=_path(node.get("register")) or home / REGISTER,
                sums=home / "sums.jsonl",
                split_key=kept_key(home),
                run=run,
                confined=True,
                policy=own_policy(node),
                checkpoint=_text(node.get("checkpoint")),
                device=_text(node.get("device")),
                overlays=int(node.get("overlays", 0)),
            )
        ]
    first, step = int(node["partition-id"]), int(node["num-partitions"])
    out = Path(str(settings["out"])).expanduser() / run
    ledgers = _path(settings.get("ledger-dir"))
    return [
        Site(
            institution=name,
            data_root=_path(settings.get("data-root")),
            store=casam_home() / "institutions" / name / "embeddings",
            public=casam_home() / "public" / "embeddings",
            key=out / "institutions" / name / "private" / SIGNING_KEY,
            register=out / REGISTER,
            sums=(ledgers / name if ledgers else out / "institutions" / name / "private") / "sums.jsonl",
            split_key=simulated_key(scenario.seed, name),
            run=run,
            private=out / "institutions" / name / "private",
            audit=out / "institutions" / name / "private" / "audit.jsonl",
            ledger=(ledgers / name if ledgers else out / "institutions" / name / "private") / "ledger.jsonl",
            confined=False,
            policy=scenario.institution(name).policy,
            checkpoint=_text(settings.get("checkpoint")),
            overlays=scenario.evaluation.overlays,
        )
        for name in names[first::step]
    ]


def own_policy(node: NodeConfig) -> Policy:
    """The policy of a real site, from its file; a scenario cannot replace it. Raises PolicyError."""
    path = _path(node.get("policy"))
    if path is None:
        raise PolicyError(
            "this node has no policy; write one and start the node with --node-config 'policy=\"FILE\"'"
        )
    return read_policy(path)


def _text(value: str | int | float | bool | None) -> str | None:
    return str(value) if value else None


def _path(value: str | int | float | bool | None) -> Path | None:
    return Path(str(value)).expanduser() if value else None
