"""Unlearning: an institution leaves, and the bank loses what was learned from its images.

This happens at the stage `leaves_at` of a policy with `on_leave = "unlearn"`, before the stage learns its
task. Entries that the institution trained alone are deleted. Entries that it trained with others are learned
again by the others, with the seeds of the first time. They are deleted instead if the scenario's `unlearning`
is "drop", or if no other institution may train. Every other institution deletes its copies and signs this.
The bank then has the bytes of a run in which the institution never took part. Earlier runs, published figures
and spent epsilon do not change.

Entries from secure sums without noise are deleted: the sums with and without the institution subtract to its
own part, so the other members refuse a second sum (client/secagg/remembered.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from casam_core.bank.bank import Bank, bank_digest
from casam_core.bank.entry_file import Entry
from casam_core.config.policy import Policy
from casam_core.errors import ScenarioError
from casam_core.files import make_folder
from casam_core.methods import method_of
from casam_core.protocol.messages import ForgetReply, ForgetRequest, purge_statement
from casam_core.protocol.payload import Job
from casam_core.protocol.register import signature_of, signing_key
from server.defence.quarantine import Quarantine, admit
from server.federation.exchange import results
from server.federation.federation import Federation
from server.learning import learn_entry


@dataclass(frozen=True)
class Unlearned:
    """The changes when one institution left.

    deleted: by task, the digest of the deleted entry, which was in the bank or in quarantine. retrained: by
    task, the digests before and after. holders: by retrained task, the holders of the new entry. purged: by
    institution, its signed statement.
    """

    institution: str
    stage: int
    bank_before: str
    bank_after: str
    deleted: Mapping[str, str]
    retrained: Mapping[str, tuple[str, str]]
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    purged: Mapping[str, ForgetReply] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """One entry of the bank after a stage. leaves: whether one of its holders will ask to unlearn it."""

    task: str
    digest: str
    stage: int
    holders: tuple[str, ...]
    leaves: bool


def held_by(bank: Bank, federation: Federation) -> tuple[Held, ...]:
    """The entries that the bank holds now, in its order."""
    leavers = {name for name, member in federation.members.items() if member.policy.on_leave == "unlearn"}
    return tuple(
        Held(
            entry.task,
            bank.digest_of(entry.task),
            entry.provenance.stage,
            entry.provenance.holders,
            leaves=not leavers.isdisjoint(entry.provenance.holders),
        )
        for entry in bank
    )


def check_unlearning(federation: Federation) -> None:
    """Raise ScenarioError if a policy asks to unlearn and the method cannot."""
    if not method_of(federation.scenario.method).shared:
        return
    for name, member in federation.members.items():
        if member.policy.on_leave == "unlearn":
            raise ScenarioError(
                f"method {federation.scenario.method!r} keeps one layer for all tasks and cannot unlearn, "
                f"but {name} asks for on_leave = 'unlearn'; choose a method with one entry per task"
            )


def unlearn(federation: Federation, stage: int, bank: Bank, held: Sequence[Held]) -> list[Unlearned]:
    """Unlearn, in `bank` itself, every institution that leaves at this stage.

    Args:
        held: the entries at the start of the stage; an interrupted stage may have removed some already.

    Raises:
        RunError: no institution answers for a task that must be learned again.
    """
    found = []
    for name, member in federation.members.items():
        if leaves_now(name, member.policy, stage, held):
            left, held = unlearn_one(federation, stage, bank, name, held)
            found.append(left)
    return found


def leaves_now(name: str, policy: Policy, stage: int, held: Sequence[Held]) -> bool:
    """Whether an institution is unlearned at this stage. Later than it asked, if it asked when the task of a
    stage was learned already."""
    if policy.on_leave != "unlearn" or policy.leaves_at is None:
        return False
    late = policy.leaves_at < stage and any(name in item.holders for item in held)
    return late or policy.leaves_at == stage


def unlearn_one(
    federation: Federation, stage: int, bank: Bank, leaver: str, held: Sequence[Held]
) -> tuple[Unlearned, list[Held]]:
    """Unlearn one institution. Returns also what remains of `held`: the bank itself may lack entries of the
    next leaver already, if the stage was interrupted."""
    remaining: list[Held] = []
    deleted: dict[str, str] = {}
    retrained: dict[str, tuple[str, str]] = {}
    holders: dict[str, tuple[str, ...]] = {}
    for item in held:
        if leaver not in item.holders:
            remaining.append(item)
            continue
        entry = None
        if federation.scenario.unlearning == "retrain" and len(item.holders) > 1:
            entry = learn_entry(federation, item.stage, item.task, bank, now=stage)
        if entry is not None and admit(federation.folder, bank, entry, stage):
            new = replace(item, digest=bank.digest_of(item.task), holders=entry.provenance.holders)
            remaining.append(new)
            retrained[item.task], holders[item.task] = (item.digest, new.digest), new.holders
            continue
        if item.task in bank.tasks:
            bank.remove(item.task)
        deleted[item.task] = item.digest
    quarantine = Quarantine(federation.folder.path)
    deleted |= {
        item.task: item.entry
        for item in quarantine.held_back()
        if leaver in Entry.from_bytes(quarantine.bytes_of(item)).provenance.holders
    }
    gone = sorted([*deleted.values(), *(old for old, _ in retrained.values())])
    purged = purge(federation, stage, leaver, gone) if gone else {}
    found = Unlearned(
        leaver,
        stage,
        digest_of(held),
        digest_of(remaining),
        deleted,
        retrained,
        holders,
        purged,
    )
    federation.folder.event(
        "unlearned",
        f"stage {stage}: {leaver} leaves; deleted {', '.join(deleted) or 'nothing'}, learned again without "
        f"it {', '.join(retrained) or 'nothing'}; {len(purged)} others purged their copies",
        stage=stage,
        institution=leaver,
        deleted=list(deleted),
        retrained=list(retrained),
        purged=sorted(purged),
    )
    return found, remaining


def digest_of(held: Sequence[Held]) -> str:
    """The digest of a bank with these entries."""
    return bank_digest({item.task: item.digest for item in held})


def empty_quarantine(run: Path, unlearned: Iterable[Unlearned]) -> None:
    """Delete the quarantined entries of institutions that left. Only after the stage is on disk: a repeated
    one must find them again."""
    gone = {digest for left in unlearned for digest in left.deleted.values()}
    if gone:
        Quarantine(run).drop(lambda item: item.entry in gone)


def without(unlearned: Unlearned, bank: Bank) -> Unlearned:
    """The changes, if a canary failed entries that were learned again: the bank has lost these."""
    lost = {task: old for task, (old, _) in unlearned.retrained.items() if task not in bank}
    kept = {task: pair for task, pair in unlearned.retrained.items() if task in bank}
    if not lost:
        return unlearned
    return replace(
        unlearned,
        bank_after=bank.digest,
        deleted={**unlearned.deleted, **lost},
        retrained=kept,
        holders={task: names for task, names in unlearned.holders.items() if task in kept},
    )


def purge(federation: Federation, stage: int, leaver: str, entries: Sequence[str]) -> dict[str, ForgetReply]:
    """Let every present institution delete entries; return the signed statements by institution.

    The next evaluation sends the bank again. entries: digests of the entries.
    """
    present = federation.present(stage)
    requests = {name: ForgetRequest(Job(name, stage), leaver, tuple(entries)) for name in present}
    answers = federation.ask(requests, ForgetReply)
    federation.copies.clear()
    run = federation.folder.path.name
    return {
        name: word
        for name, word in results(answers).items()
        if federation.register.is_by(name, purge_statement(name, run, leaver, entries), word.signature)
    }


def facts_of(
    unlearned: Unlearned, before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, Any]:
    """The facts for summary.json and the receipt. before, after: IoU by task, before and after this stage."""
    return {
        "institution": unlearned.institution,
        "stage": unlearned.stage,
        "deleted": sorted(unlearned.deleted),
        "retrained": sorted(unlearned.retrained),
        "bank_before": unlearned.bank_before,
        "bank_after": unlearned.bank_after,
        "purged": sorted(unlearned.purged),
        "iou_before": dict(before),
        "iou_after": {task: after.get(task) for task in before},
    }


NOT_COVERED = (
    "Other institutions attest that they deleted their copies; this is no proof. The unlearning does not "
    "cover earlier runs, published figures, mirrors of entries, knowledge that other institutions gained "
    "from the entries, and spent privacy budget."
)


def write_receipt(federation: Federation, unlearned: Unlearned, facts: Mapping[str, Any]) -> None:
    """Write receipts/INSTITUTION-stage-N.json, signed with the server's key."""
    folder = federation.folder
    statement = {
        "role": "receipt",
        "schema": 2,
        "run": folder.path.name,
        **facts,
        "deleted": dict(unlearned.deleted),
        "retrained": {task: list(pair) for task, pair in unlearned.retrained.items()},
        "purged": {name: reply.signature for name, reply in unlearned.purged.items()},
        "not_covered": NOT_COVERED,
    }
    signed = {**statement, "signature": signature_of(signing_key(federation.key), statement)}
    make_folder(folder.path / "receipts")
    folder.write_json(f"receipts/{unlearned.institution}-stage-{unlearned.stage}.json", signed)
