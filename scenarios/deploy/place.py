"""One site, as its node file describes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casam_core.config.policy import Policy
from casam_core.config.site_file import SiteFile, read_site_file
from casam_core.config.toml import read_policy
from casam_core.errors import DataError, DeploymentError
from client.data.open import open_dataset
from client.node.approvals import approvals_in, pending_in
from client.node.node_file import read_node_file
from scenarios.inspection.survey import require_clear


@dataclass(frozen=True)
class Place:
    """One site, as its node file describes it."""

    institution: str
    site: SiteFile
    policy: Policy
    home: Path
    data_root: Path | None

    def check_user(self) -> None:
        """Raise DeploymentError if root would leave files in the home that the node's user cannot read."""
        if os.geteuid() == 0 and self.home.exists() and (owner := self.home.stat().st_uid) != 0:
            raise DeploymentError(
                f"home: expected the user of {self.home} (number {owner}), found root, whose files the node "
                f"could not read; run `sudo -u '#{owner}' casam ...`"
            )

    def overview(self) -> Iterator[str]:
        """The scenarios that wait and those that were approved, one line each."""
        facts = list(self.facts())
        if not facts:
            yield "no scenario waits, and none was approved"
        for fact in facts:
            about = f"  {fact['time']}  by {fact['by']}: {fact['name']}" if "by" in fact else ""
            yield f"{fact['state']:<9} {fact['digest'][:12]}{about}"

    def facts(self) -> Iterator[dict[str, str]]:
        """The same as tables."""
        for path in pending_in(self.home):
            yield {"state": "waits", "digest": path.stem}
        for given in approvals_in(self.home):
            state = "withdrawn" if given.withdrawn else "approved"
            about = {"name": given.name, "time": given.time, "by": given.by}
            yield {"state": state, "digest": given.digest} | about


def check_images(place: Place) -> None:
    """Raise DataError, which names the task, if its images are missing or its masks are in doubt.

    `casam data check --site` reads more; this function is quick enough for every start of a node.
    """
    for task, spec in place.site.tasks.items():
        try:
            dataset = open_dataset(
                spec, data_root=place.data_root, seed=spec.seed, institution=place.institution
            )
            require_clear(dataset, spec)
        except DataError as error:
            raise DataError(f"task {task!r} of the site file: {error}") from error


def site_at(node: Path) -> Place:
    """The site of a node file. Raises DeploymentError, PolicyError or DataError."""
    file = read_node_file(node)
    return Place(
        file.institution, read_site_file(file.site), read_policy(file.policy), file.home, file.data_root
    )
