"""`casam attack`: what the entries of a finished run reveal about their training images.

The run folder holds the entries and the claims about them. The attack opens the images again in the same way
as `casam run`, so it works for simulations and for an institution with its own images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from casam_bench.bench import table_of
from casam_bench.membership.inference_attack import (
    LAYER_ATTACKS,
    ROUTER_ATTACKS,
    Attacked,
    Target,
    attack_entry,
)
from casam_bench.membership.statistics import LEVELS, NOT_MEASURABLE, Bound
from casam_core.bank.bank import Bank
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import CasamError, DataError, RunError
from casam_core.methods import method_of
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import prepare_process, resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from client.data.task_data import open_task
from client.node.node_file import NodeFile, node_settings
from client.site import Site, hosted_sites
from server.run.summary_schema import read_summary

Report = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""By institution, task and attack: its figures and the policy's claims (docs/attacks.md)."""


class AttackError(CasamError):
    """The run cannot be attacked, or not with these arguments."""


@dataclass(frozen=True)
class Claim:
    """An institution's policy and the epsilon spent in its ledger, from summary.json."""

    policy: Policy
    epsilon: float | None

    @property
    def delta(self) -> float:
        """Delta of the budget; 0 without a claim."""
        return self.policy.budget.delta or 0.0

    def of(self, attack: str) -> dict[str, Any]:
        """The claim's part of an attack's figures. epsilon: of all releases; null if one has no noise."""
        learned: LearnedPolicy = self.policy.adapter if attack in LAYER_ATTACKS else self.policy.router
        noisy = learned.noise == "dp"
        return {
            "noise": learned.noise,
            "epsilon": self.epsilon if noisy else None,
            "delta": self.policy.budget.delta if noisy else None,
            "unit": self.policy.budget.unit if noisy else None,
        }


@dataclass(frozen=True)
class Run:
    """A finished run. sites: by institution, its folders of images and embeddings."""

    folder: Path
    scenario: Scenario
    bank: Bank
    claims: dict[str, Claim]
    sites: dict[str, Site]


def open_run(folder: Path, data_root: Path | None, node: NodeFile | None = None) -> Run:
    """A finished run with its claims and its institutions' images.

    Args:
        folder: The run folder, absolute.
        data_root: Base folder of relative data paths.
        node: The institution's own node file, for the run of a deployment.

    Raises:
        AttackError: The folder holds no finished run, or its method has no entry per task.
    """
    for name in ("scenario.json", "summary.json"):
        if not (folder / name).is_file():
            raise AttackError(
                f"{folder}: expected the folder of a finished run, found no {name}; check the path"
            )
    try:
        privacy = read_summary(folder).privacy
        scenario = Scenario.model_validate_json((folder / "scenario.json").read_text())
    except RunError as error:
        raise AttackError(str(error)) from error
    except ValueError as error:
        raise AttackError(
            f"{folder}: its scenario.json cannot be read ({type(error).__name__}); use the version of casam "
            "that ran it"
        ) from error
    claims = {name: Claim(facts.policy, facts.epsilon_train) for name, facts in privacy.items()}
    method = method_of(scenario.method)
    if method.shared or not method.learns:
        raise AttackError(
            f"{folder}: method {scenario.method!r} has no entry per task, so there is nothing to attack"
        )
    settings: dict[str, str | int | float | bool] = {
        "out": str(folder.parent),
        "data-root": str(data_root.expanduser().resolve()) if data_root else "",
        "checkpoint": scenario.backbone.checkpoint or "",
    }
    where: dict[str, str | int | float | bool] = {"partition-id": 0, "num-partitions": 1}
    if node is not None:
        where = {**node_settings(node)}
    sites = hosted_sites(scenario, folder.name, where, settings)
    if not sites:
        raise AttackError(
            f"{folder}: expected a run in which {node.institution if node else 'somebody'} takes part, found "
            f"{', '.join(site.name for site in scenario.institutions)}; check the node file"
        )
    return Run(
        folder, scenario, Bank.open(folder / "bank"), claims, {site.institution: site for site in sites}
    )


def attack_run(run: Run, wanted: Sequence[str], shadows: int) -> Report:
    """Attack every entry of the run, from the side of each of its holders.

    wanted: institutions; if empty, all of them. shadows: layers to train per entry for likelihood ratios.
    Raises AttackError if nothing can be attacked, or if the images of an institution are not at hand.
    """
    scenario = run.scenario
    names = list(wanted) or list(run.sites)
    for name in names:
        if name not in run.sites:
            raise AttackError(f"--institution: expected one of {', '.join(run.sites)}, found {name!r}")
        if run.sites[name].simulated and not (run.folder / "institutions" / name).is_dir():
            raise AttackError(
                f"{run.folder} has no folder of {name!r}, so this is the run of a real deployment. An attack "
                f"needs the images: call it at {name} on a copy of the run folder, with --node node.toml"
            )
    compute = resolve_compute(scenario.compute)
    prepare_process(compute)
    backbone = load_backbone(scenario.backbone, compute)
    report: Report = {}
    for name in names:
        for task in scenario.institution(name).data:
            if task in scenario.stream:
                report.setdefault(name, {})[task] = attack_one(run, name, task, backbone, shadows)
    if not any(figures["refused"] is None for _, _, _, figures in lines(report)):
        raise AttackError(f"nothing can be attacked. {'; '.join(refusals(report)) or 'No task was learned'}")
    return report


def attack_one(run: Run, name: str, task: str, backbone: Backbone, shadows: int) -> dict[str, dict[str, Any]]:
    """By attack: the figures for one institution's part in one task's entry."""
    claim = run.claims.get(name)
    reason = why_not(run, name, task)
    if reason is None and claim is None:
        reason = "summary.json has no policy of this institution"
    if reason is not None or claim is None:
        refused = Attacked(None, reason)
        return {attack: figures_of(attack, refused, claim) for attack in (*LAYER_ATTACKS, *ROUTER_ATTACKS)}
    entry = run.bank[task]
    if entry.provenance.backbone != backbone.digest:
        raise AttackError(
            f"task {task!r} was learned behind backbone {entry.provenance.backbone[:12]}, found "
            f"{backbone.digest[:12]}; give the run's own checkpoint"
        )
    site = run.sites[name]
    data = open_task(
        site.tasks[task],
        task=task,
        institution=name,
        data_root=site.data_root,
        store=EmbeddingStore(site.store),
        key=site.split_key,
        policy=site.policy,
    )
    images, trained = len(data.split.train), entry.provenance.images
    alone = entry.provenance.holders == (name,)
    if images > trained or (alone and images != trained):
        raise DataError(
            f"institution {name!r}, task {task!r}: the entry was learned from {trained} images, found "
            f"{images} for training; these are not the images of the run"
        )
    target = Target(name, entry, run.scenario, claim.policy, backbone, data, claim.delta)
    return {
        attack: figures_of(attack, attacked, claim)
        for attack, attacked in attack_entry(target, shadows).items()
    }


def why_not(run: Run, name: str, task: str) -> str | None:
    """Why the task's entry has no part of this institution; None if it has one."""
    if task not in run.bank:
        return "not shared: the bank has no entry of this task"
    holders = run.bank[task].provenance.holders
    if name not in holders:
        return f"not shared: the entry is only from {', '.join(holders)}"
    return None


def figures_of(attack: str, attacked: Attacked, claim: Claim | None) -> dict[str, Any]:
    """The figures of one attack as in the JSON file (docs/attacks.md)."""
    facts: dict[str, Any] = claim.of(attack) if claim is not None else {}
    outcome = attacked.outcome
    if outcome is None:
        return {"auc": None, **facts, "refused": attacked.refused}
    epsilon = facts["epsilon"]
    figures: dict[str, Any] = {
        "auc": outcome.auc,
        "p_value": outcome.p_value,
        **{rate_name(level): or_word(outcome.tpr[level]) for level in LEVELS},
        "members": outcome.members,
        "non_members": outcome.non_members,
        **facts,
        "epsilon_lower_bound": or_word(outcome.epsilon),
        "epsilon_lower_bound_at_most": or_word(outcome.ceiling),
        "vacuous": outcome.vacuous(epsilon) if epsilon is not None else None,
        "claim_holds": holds(outcome.epsilon, epsilon),
        "bounds": {rate_name(level): bound_facts(outcome.bounds[level]) for level in LEVELS},
        "refused": None,
    }
    if attacked.resembles is not None:
        members, others = attacked.resembles
        figures |= {"centre_resembles_members": members, "centre_resembles_non_members": others}
    return figures


def holds(bound: float | None, epsilon: float | None) -> bool | None:
    """Whether the measured bound is consistent with the claim; None without a claim or a measurable rate."""
    return None if bound is None or epsilon is None else bound <= epsilon


def rate_name(level: float) -> str:
    """`tpr_at_1pct_fpr`"""
    return f"tpr_at_{100 * level:g}pct_fpr"


def or_word(value: float | None) -> float | str:
    """The figure, or the reason why there is none."""
    return NOT_MEASURABLE if value is None else value


def bound_facts(bound: Bound | None) -> dict[str, float] | str:
    """The bound at one false positive rate."""
    if bound is None:
        return NOT_MEASURABLE
    return {"tpr": bound.tpr, "fpr": bound.fpr, "epsilon": bound.epsilon}


def lines(report: Report) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(institution, task, attack, figures)."""
    for name, tasks in report.items():
        for task, attacks in tasks.items():
            for attack, figures in attacks.items():
                yield name, task, attack, figures


def table_of_report(report: Report) -> Table:
    """One row per attack that was made."""
    title = "Membership inference: which images were used in training? An AUC of 0.5 is guessing"
    columns = ("members / others", "AUC", "p", "TPR at 1 % FPR", "noise", "epsilon", "shown epsilon >=")
    table = table_of(title, ("institution", "task", "attack", *columns), left=3)
    for name, task, attack, figures in lines(report):
        if figures["refused"] is not None:
            continue
        table.add_row(
            name,
            task,
            attack,
            f"{figures['members']} / {figures['non_members']}",
            f"{figures['auc']:.3f}",
            f"{figures['p_value']:.3g}",
            cell(figures[rate_name(0.01)]),
            figures["noise"],
            "-" if figures["epsilon"] is None else f"{figures['epsilon']:.3g}",
            cell(figures["epsilon_lower_bound"]) + (" (vacuous)" if figures["vacuous"] else ""),
        )
    return table


def refusals(report: Report) -> list[str]:
    """The attacks that were not possible, with one line per institution, task and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, task, attack, figures in lines(report):
        if figures["refused"] is not None:
            found.setdefault((name, task, figures["refused"]), []).append(attack)
    return [
        f"{name}, {task} ({', '.join(attacks)}): {reason}" for (name, task, reason), attacks in found.items()
    ]


def cell(value: float | str) -> str:
    """A figure or a word."""
    return value if isinstance(value, str) else f"{value:.3f}"


def broken_claims(report: Report) -> list[str]:
    """Claims that an attack refuted, with one line each."""
    return [
        f"{name}, {task}, {attack}: epsilon is {figures['epsilon_lower_bound']:.2f} or more (95 %), "
        f"the claim is {figures['epsilon']:.2f}"
        for name, task, attack, figures in lines(report)
        if figures.get("claim_holds") is False
    ]


CLEAR = 0.01
"""The largest p value at which an attack counts as a success."""


def verdict(report: Report) -> str:
    """One sentence: whether an attack succeeded, and what was not measurable. For claims that all hold."""
    made = [line for line in lines(report) if line[3]["refused"] is None]
    silent = sum(figures["claim_holds"] is None or bool(figures["vacuous"]) for *_, figures in made)
    rest = "no claimed epsilon was refuted"
    if silent:
        rest = f"{silent} of them say nothing about an epsilon: no claim, or too few images for a bound"
    # With more attacks, more of them would look like a success by chance (Bonferroni).
    won = sum(figures["auc"] > 0.5 and figures["p_value"] < CLEAR / len(made) for *_, figures in made)
    name, task, attack, figures = max(made, key=lambda line: line[3]["auc"])
    return (
        f"{won or 'none'} of {len(made)} attacks recognises training images (p below {CLEAR}, corrected for "
        f"{len(made)} attacks); the largest AUC is {figures['auc']:.3f}, {attack} at {name}, {task}; {rest}"
    )
