"""A SuperLink that somebody else started: submitting a run to it and following it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from casam_core.config.scenario import Scenario
from casam_core.errors import DeploymentError, RunError
from casam_core.protocol.fingerprint import ROOT
from scenarios.engines.flower import stage_app, submit, terminable
from scenarios.engines.live import live_view
from scenarios.engines.run import why_failed
from scenarios.engines.superlink import SuperLink, toml_text, variables_for


@contextlib.contextmanager
def remote_superlink(address: str, authority: Path) -> Iterator[SuperLink]:
    """The SuperLink at `address` (host:port); `authority` signed its certificate. Raises DeploymentError."""
    if not authority.is_file():
        raise DeploymentError(f"--authority: no certificate at {authority}; it is the operator's ca.crt")
    with tempfile.TemporaryDirectory(prefix="casam-") as scratch:
        home = Path(scratch)
        table = {"address": address, "root-certificates": str(authority.resolve())}
        connection = '[superlink]\ndefault = "own"\n[superlink.own]\n' + toml_text(table)
        (home / "config.toml").write_text(connection, encoding="utf-8")
        yield SuperLink(home, variables_for(home, home), None, 0)


def run_remotely(scenario: Scenario, folder: Path, address: str, authority: Path, console: Console) -> None:
    """Run the scenario over the nodes that are connected there. Raises RunError if it failed.

    folder: the run folder, which the SuperLink's processes write: here, or on a volume that both see.
    """
    with terminable(), remote_superlink(address, authority) as link, live_view(console) as show:
        app = stage_app(ROOT, link.home / "app")
        settings = {"scenario": scenario.canonical_json(), "out": str(folder.parent), "run": folder.name}
        run = submit(link, app, settings, show)
    if not run.ok or not (folder / "summary.json").exists():
        raise RunError(f"{why_failed(folder, run.status)}; details in {folder / 'events.jsonl'}")
