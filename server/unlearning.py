"""Unlearning: an institution leaves and takes with it what was learned from its images.

This happens at the stage that a policy names in `leaves_at` with `on_leave = "unlearn"`, before anything else
is learned. Entries that the institution made alone are deleted. Entries that others made with it are learned
anew by the others, from the same seeds as at first; they are dropped where the scenario's `unlearning` says
so, or where nobody else may train. Every other institution deletes its copies and signs that it did. The bank
then has the bytes of a run in which the institution never took part. Earlier runs, printed figures and spent
epsilon stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from casam_core.bank.bank import Bank, bank_digest
from casam_core.bank.entry_file import Entry
from casam_core.errors import ScenarioError
from casam_core.files import casam_home
from casam_core.methods import method_of
from casam_core.protocol.messages import ForgetReply, ForgetRequest, purge_statement
from casam_core.protocol.payload import Job
from casam_core.protocol.signing import is_signed, public_hex, signature_of, signing_key
from server.defence.quarantine import Quarantine
from server.federation.exchange import results
from server.federation.federation import Federation
from server.learning import learn_entry
from server.run.run_folder import RunFolder


@dataclass(frozen=True)
class Unlearned:
    """What the leaving of one institution changed.

    deleted: by task, the digest of the entry that is gone. retrained: by task, the digests before and after.
    holders: by retrained task, who made the new entry. purged: by institution, its signed word.
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
    """One entry of the bank as it stood after a stage.

    leaves: whether an institution that had a part in it takes it out later.
    """

    task: str
    digest: str
    stage: int
    holders: tuple[str, ...]
    leaves: bool


def held_by(bank: Bank, federation: Federation) -> tuple[Held, ...]:
    """What the bank holds now, in its order."""
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
    """Raise ScenarioError for a method that could not keep a policy's promise to unlearn."""
    if not method_of(federation.scenario.method).shared:
        return
    for name, member in federation.members.items():
        if member.policy.on_leave == "unlearn":
            raise ScenarioError(
                f"method {federation.scenario.method!r} keeps one layer for all tasks, from which nothing "
                f"can be taken back, and {name} asks for on_leave = 'unlearn'; choose a method with an entry "
                "per task"
            )


def unlearn(federation: Federation, stage: int, bank: Bank, held: Sequence[Held]) -> list[Unlearned]:
    """Take out of `bank`, in place, what the institutions made that leave at this stage.

    held: what the bank held when the stage began; an interrupted stage may have taken out some of it already.
    Raises RunError when nobody answers for a task that must be learned anew.
    """
    found = []
    for name, member in federation.members.items():
        if member.policy.on_leave == "unlearn" and member.policy.leaves_at == stage:
            found.append(unlearn_one(federation, stage, bank, name, held))
            held = held_by(bank, federation)
    return found


def unlearn_one(
    federation: Federation, stage: int, bank: Bank, leaver: str, held: Sequence[Held]
) -> Unlearned:
    """One institution's leaving."""
    before = bank_digest({item.task: item.digest for item in held})
    deleted: dict[str, str] = {}
    retrained: dict[str, tuple[str, str]] = {}
    holders: dict[str, tuple[str, ...]] = {}
    for item in held:
        if leaver not in item.holders:
            continue
        entry = None
        if federation.scenario.unlearning == "retrain" and len(item.holders) > 1:
            entry = learn_entry(federation, item.stage, item.task, bank, now=stage)
        if entry is not None:
            retrained[item.task] = (item.digest, bank.replace(entry))
            holders[item.task] = entry.provenance.holders
            continue
        if item.task in bank.tasks:
            bank.remove(item.task)
        deleted[item.task] = item.digest
    quarantine = Quarantine(federation.folder.path)
    held_back = [
        item.task
        for item in quarantine.held_back()
        if leaver in Entry.from_bytes(quarantine.bytes_of(item)).provenance.holders
    ]
    gone = sorted([*quarantine.drop(held_back), *deleted.values(), *(old for old, _ in retrained.values())])
    purged = purge(federation, stage, leaver, gone) if gone else {}
    found = Unlearned(leaver, stage, before, bank.digest, deleted, retrained, holders, purged)
    federation.folder.event(
        "unlearned",
        f"stage {stage}: {leaver} leaves; deleted {', '.join(deleted) or 'nothing'}, learned anew without it "
        f"{', '.join(retrained) or 'nothing'}; {len(purged)} others purged their copies",
        stage=stage,
        institution=leaver,
        deleted=list(deleted),
        retrained=list(retrained),
        purged=sorted(purged),
    )
    return found


def purge(federation: Federation, stage: int, leaver: str, entries: Sequence[str]) -> dict[str, ForgetReply]:
    """Let everybody who is present delete entries; the signed words of those who did, by institution.

    The next evaluation sends copies of the bank anew. entries: digests.
    """
    present = federation.present(stage)
    requests = {name: ForgetRequest(Job(name, stage), leaver, tuple(entries)) for name in present}
    answers = federation.ask(requests, ForgetReply)
    federation.copies.clear()
    run = federation.folder.path.name
    return {
        name: word
        for name, word in results(answers).items()
        if is_signed(word.public, purge_statement(name, run, leaver, entries), word.signature)
    }


def facts_of(
    unlearned: Unlearned, before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, Any]:
    """What summary.json and the receipt say. before, after: IoU by task, of the stage before and of this."""
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
    "Copies elsewhere are attested by their holders, not proven to be gone. Out of reach are earlier runs, "
    "figures that were published, what other institutions learned from looking at the entries, and privacy "
    "budget that was spent."
)


def write_receipt(folder: RunFolder, unlearned: Unlearned, facts: Mapping[str, Any]) -> None:
    """receipts/INSTITUTION-stage-N.json, signed with the server's key."""
    statement = {
        "schema": 1,
        "run": folder.path.name,
        **facts,
        "deleted": dict(unlearned.deleted),
        "retrained": {task: list(pair) for task, pair in unlearned.retrained.items()},
        "purged": {
            name: {"public_key": reply.public, "signature": reply.signature}
            for name, reply in unlearned.purged.items()
        },
        "not_covered": NOT_COVERED,
    }
    key = signing_key(casam_home() / "server" / "signing.key")
    signed = {**statement, "public_key": public_hex(key), "signature": signature_of(key, statement)}
    (folder.path / "receipts").mkdir(exist_ok=True)
    folder.write_json(f"receipts/{unlearned.institution}-stage-{unlearned.stage}.json", signed)


def faults_in_receipt(receipt: Mapping[str, Any], digests: Sequence[str] = ()) -> list[str]:
    """What is wrong with a receipt, a line each. digests: of the bank that should have forgotten."""
    statement = {k: v for k, v in receipt.items() if k not in ("public_key", "signature")}
    found = []
    if not is_signed(str(receipt["public_key"]), statement, str(receipt["signature"])):
        found.append("the receipt was altered, or another key signed it")
    gone = sorted([*receipt["deleted"].values(), *(old for old, _ in receipt["retrained"].values())])
    for name, word in receipt["purged"].items():
        said = purge_statement(name, receipt["run"], receipt["institution"], gone)
        if not is_signed(word["public_key"], said, word["signature"]):
            found.append(f"{name} did not sign that it deleted these entries")
    found += [f"the bank still holds {digest}" for digest in gone if digest in digests]
    return found
