"""`casam attack`: what a finished run reveals about its training images, and whether its epsilons hold."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import RunError, ScenarioError
from casam_core.files import write_atomic
from scenarios.commands.terminal import needs_folder, print_json
from scenarios.printing import console

if TYPE_CHECKING:
    from rich.console import Console

    from casam_bench.membership.audit_claims import Claimed
    from casam_bench.membership.audit_lines import Audits


def attack(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_SCENARIO",
            help="Folder of a finished run; or a scenario, whose planned releases are audited.",
        ),
    ],
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write {institution: {task: {attack: {figure: value}}}} to this file; - prints it alone.",
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Base folder of relative data paths, as for `casam run`.")
    ] = None,
    institution: Annotated[
        list[str] | None, typer.Option(help="Attack only this institution (repeatable).")
    ] = None,
    node: Annotated[
        Path | None,
        typer.Option(
            help="For a deployment: the node.toml of this institution, which names images, split and ledger."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shadow layers to train per entry, an even number; each costs one training. 0: no "
            "likelihood-ratio attack on the layer.",
        ),
    ] = 4,
    canaries: Annotated[
        int,
        typer.Option(
            min=0, help="Synthetic canaries of the audit of private releases, 1000 or more. 0: no audit."
        ),
    ] = 10_000,
) -> None:
    """Measure how well an attacker can tell an institution's training images from its other images.

    For example: casam attack RUN --shadows 0, or at an institution: casam attack RUN --node node.toml

    Members are its training images; non-members are its validation and test images. The figures depend on
    these images, so the institution decides about their publication. Then every private release is audited:
    worst-case canaries give a lower bound of its epsilon. Exits with 1 if a claimed epsilon does not hold.
    """
    from casam_core.config.library import resolve_scenario

    folder = Path(run).expanduser()
    if not folder.is_dir():
        try:
            resolve_scenario(run)
        except ScenarioError as error:
            raise ScenarioError(f"{run}: expected a run folder, found none; as a {error}") from error
    from casam_bench.membership.attack_run import (
        attack_run,
        broken_claims,
        open_run,
        refusals,
        table_of_report,
        verdict,
    )
    from casam_bench.membership.audit_claims import claims_of_ledger, refuted
    from casam_bench.membership.audit_lines import write_audits
    from client.node.node_file import read_node_file
    from scenarios.engines.live import LineWriter, live_view
    from scenarios.report.reading import PRIVACY_AUDIT

    check_options(shadows, canaries, json_, node, data_root)
    only_json = json_ == Path("-")
    screen = console(stderr=only_json)
    if not folder.is_dir():
        audit_scenario(screen, run, canaries)
        return
    opened = open_run(folder.resolve(), data_root, read_node_file(node) if node is not None else None)
    with live_view(screen) as show, contextlib.redirect_stdout(LineWriter(show)):
        report = attack_run(opened, institution or [], shadows)
    screen.print(table_of_report(report))
    for line in refusals(report):
        screen.print(f"not attacked: {line}", highlight=False, soft_wrap=True)
    if only_json:
        print_json(report)
    elif json_ is not None:
        write_atomic(json_, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    claims = {name: claims_of_ledger(opened.sites[name]) for name in report}
    audits = audit(screen, claims, canaries, opened.scenario.seed)
    if audits:
        write_audits(opened.folder / PRIVACY_AUDIT, audits)
    broken = broken_claims(report) + refuted(audits)
    if not broken:
        screen.print(f"verdict: {verdict(report)}", highlight=False, soft_wrap=True)
    refuse(broken)


def check_options(
    shadows: int, canaries: int, json_: Path | None, node: Path | None, data_root: Path | None
) -> None:
    """Raise AttackError for options that cannot be meant."""
    from casam_bench.membership.attack_run import AttackError
    from casam_bench.membership.audit_claims import FEWEST

    if shadows % 2:
        raise AttackError(f"--shadows: expected an even number, found {shadows}")
    if 0 < canaries < FEWEST:
        raise AttackError(f"--canaries: expected 0, or at least {FEWEST}; found {canaries}")
    needs_folder("--json", json_)
    if node is not None and data_root is not None:
        raise AttackError("--data-root: expected no other folder than that of --node; leave it out")


def audit_scenario(screen: Console, name: str, canaries: int) -> None:
    """Audit the releases that the policies of a scenario plan."""
    from casam_bench.membership.audit_claims import claims_of_policy, refuted
    from casam_core.config.library import resolve_scenario

    scenario = resolve_scenario(name)
    claims = {site.name: list(claims_of_policy(scenario, site.policy)) for site in scenario.institutions}
    refuse(refuted(audit(screen, claims, canaries, scenario.seed)))


def audit(screen: Console, claims: Mapping[str, Sequence[Claimed]], canaries: int, seed: int) -> Audits:
    """Audit the claims and print the lines; nothing without canaries or without a claim."""
    from casam_bench.membership.audit_claims import audit_claims, table_of_audits

    if not canaries:
        return {}
    audits = audit_claims(claims, canaries, seed)
    if audits:
        screen.print(table_of_audits(audits))
    else:
        screen.print("not audited: no institution made a release with noise", highlight=False)
    return audits


def refuse(broken: Sequence[str]) -> None:
    """Raise RunError if a claim is broken."""
    if broken:
        raise RunError(f"a claimed epsilon does not hold. {'; '.join(broken)}")
