"""Facts of the site. They come from the node, never from the server or the scenario's author.

In a simulation the scenario stands in the place of the site's files: its `data` tables in that of the site
file, its policies in that of the policy files.

In deployment a SuperNode is started with --node-config 'institution="a" data-root="/data" home="/home"'
and hosts that one institution. In a simulation one node hosts every num-partitions-th institution of the
scenario, so any number of nodes is possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casam_core.config.participation import FaultSpec
from casam_core.config.policy import Policy
from casam_core.config.public_files import PublicFiles
from casam_core.config.scenario import RUN_NAME, Scenario
from casam_core.config.site_file import SiteFile, TaskDescription, read_site_file, simulated_task
from casam_core.config.toml import read_policy
from casam_core.errors import DataError, PolicyError, RunError
from casam_core.files import casam_home
from casam_core.protocol.register import REGISTER, SIGNING_KEY
from client.data.splits import SPLIT_KEY, kept_key, simulated_key
from client.node.approvals import APPROVALS
from client.node.incidents import NodeConfig


@dataclass(frozen=True)
class Site:
    """The files, the policy and the settings of one institution.

    Args:
        store: folder of embeddings, shared by all runs.
        public: folder of embeddings of public images; all simulated institutions share it.
        private: folder of this run's files at the institution. run: name of the run.
        audit: log of all releases; ledger: log of private releases. In deployment both cover all runs.
        key: private key for signed statements. register: all institutions' public keys.
        sums: log of the sums without noise that this institution was part of, also alone.
        questions: log of the different requests that it answered.
        split_key: secret that decides the split.
        scenario: digest of the run's scenario.
        simulated: whether this institution is part of a simulation; its privacy noise is then seeded.
        policy: what this institution allows; in deployment from its own file.
        tasks: by task of the scenario, its images here; in deployment from the site's own file.
        checkpoint: file of the backbone's weights.
        device: overrides the scenario's compute.device.
        mirror: folder of entries, each in a file DIGEST.entry, that the site keeps in step by its own means.
        relay: folder of questions to the institutions that this one stands for; None: it has its own images.
        overlays: pictures per task for the institution only.
        faults: what a simulated institution does wrong.
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
    questions: Path
    split_key: bytes
    run: str
    scenario: str
    simulated: bool
    policy: Policy
    tasks: Mapping[str, TaskDescription] = field(hash=False)
    checkpoint: str | None = None
    device: str | None = None
    mirror: Path | None = None
    relay: Path | None = None
    overlays: int = 0
    faults: FaultSpec = field(default_factory=FaultSpec)

    def localised(self, scenario: Scenario) -> Scenario:
        """The scenario with this site's own images, checkpoint and device; a relay has no images of its own.

        Simulated sites share the scenario's list of institutions, which describes their images already: a
        list for each of 10,000 would be a hundred million places.
        """
        institutions = scenario.institutions
        if not self.simulated and self.relay is None:
            institutions = [
                spec.model_copy(update={"data": self.tasks}) if spec.name == self.institution else spec
                for spec in institutions
            ]
        backbone = scenario.backbone.model_copy(update={"checkpoint": self.checkpoint})
        compute = scenario.compute.model_copy(update={"device": self.device or scenario.compute.device})
        return scenario.model_copy(
            update={"institutions": institutions, "backbone": backbone, "compute": compute}
        )

    def folder_of(self, kind: PublicFiles[Any]) -> Path:
        """Folder of one kind of public files that came with scenarios."""
        return self.public.with_name(kind.folder)

    @property
    def log(self) -> Path:
        """Log of failures with their reasons, for the institution only."""
        return self.private / "site.log"


def hosted_sites(
    scenario: Scenario, run: str, node: NodeConfig, settings: NodeConfig, digest: str | None = None
) -> list[Site]:
    """The sites this node answers for, in the scenario's order; none if its institution does not take part.

    Args:
        node: the SuperNode's own configuration.
        settings: the run's configuration, which only a simulation uses.
        digest: of the scenario, from a caller that knows it: each of a thousand nodes would compute it again.

    Raises:
        RunError: the run name is not a plain folder name.
        PolicyError: a real site has no valid policy file.
        DataError: a real site's file or key for splits cannot be used, or it does not describe a task.
    """
    if not RUN_NAME.fullmatch(run):
        raise RunError(f"run name: expected letters, digits, '.', '_' and '-', found {run!r}")
    digest = digest or scenario.digest()
    if "institution" in node:
        if node["institution"] not in [spec.name for spec in scenario.institutions]:
            return []
        home, name = home_of(node), str(node["institution"])
        policy, described = own_policy(node), own_site_file(node)
        return [
            Site(
                institution=name,
                data_root=_path(node.get("data-root")),
                store=home / "embeddings",
                public=home / "embeddings",
                # Two scenarios with the same run name must not read each other's results.
                private=home / "runs" / f"{run}-{digest[:12]}",
                audit=home / "audit.jsonl",
                ledger=home / "ledger.jsonl",
                key=_path(node.get("signing-key")) or home / SIGNING_KEY,
                register=_path(node.get("register")) or home / REGISTER,
                sums=home / "sums.jsonl",
                questions=home / "questions.jsonl",
                split_key=kept_key(home),
                run=run,
                scenario=digest,
                simulated=False,
                policy=policy,
                tasks=described.described(scenario.institution(name).data),
                checkpoint=_text(node.get("checkpoint")),
                device=_text(node.get("device")),
                mirror=_path(node.get("mirror")),
                relay=_path(described.relay),
                overlays=int(node.get("overlays", 0)),
            )
        ]
    first, step = int(node["partition-id"]), int(node["num-partitions"])
    out = Path(str(settings["out"])).expanduser() / run
    ledgers = _path(settings.get("ledger-dir"))

    def memory(name: str) -> Path:
        """The folder of logs that may go on over several runs."""
        return ledgers / name if ledgers else out / "institutions" / name / "private"

    return [
        Site(
            institution=spec.name,
            data_root=_path(settings.get("data-root")),
            store=simulated_store(spec.name),
            public=casam_home() / "public" / "embeddings",
            key=out / "institutions" / spec.name / "private" / SIGNING_KEY,
            register=out / REGISTER,
            sums=memory(spec.name) / "sums.jsonl",
            questions=memory(spec.name) / "questions.jsonl",
            split_key=simulated_key(scenario.seed, spec.name),
            run=run,
            scenario=digest,
            private=out / "institutions" / spec.name / "private",
            audit=out / "institutions" / spec.name / "private" / "audit.jsonl",
            ledger=memory(spec.name) / "ledger.jsonl",
            simulated=True,
            policy=spec.policy,
            tasks={task: simulated_task(data, scenario.seed) for task, data in spec.data.items()},
            checkpoint=_text(settings.get("checkpoint")),
            overlays=scenario.evaluation.overlays,
            faults=spec.faults,
        )
        for spec in scenario.institutions[first::step]
    ]


def simulated_store(institution: str) -> Path:
    """Where a simulated institution keeps its embeddings, for all runs of this machine."""
    return casam_home() / "institutions" / institution / "embeddings"


def home_of(node: NodeConfig) -> Path:
    """The institution's own folder."""
    return Path(str(node["home"])).expanduser() if "home" in node else casam_home()


def files_of(node: NodeConfig) -> list[Path]:
    """The files of a real site that decide what it answers."""
    home, own = home_of(node), (_path(node.get("policy")), _path(node.get("site")))
    return [home / APPROVALS, home / SPLIT_KEY, *(path for path in own if path is not None)]


def own_site_file(node: NodeConfig) -> SiteFile:
    """The site file of a real site; no scenario can replace it. Raises DataError."""
    path = _path(node.get("site"))
    if path is None:
        raise DataError(
            "this node has no site file; write one with `casam site init` and start the node with "
            "--node-config 'site=\"FILE\"'"
        )
    return read_site_file(path)


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
