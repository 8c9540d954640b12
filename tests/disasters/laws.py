"""What must hold, whatever happens: after every message that leaves a site, and at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common.secure_aggregation.secaggplus_constants import Key

from casam_core.bank.bank import bank_digest
from casam_core.bank.entry_file import digest_of as entry_digest
from casam_core.config.policy import Policy
from casam_core.protocol.audit import AuditError, Release, broken, read_log
from casam_core.protocol.payload import AUDIT, Payload, digest_of
from casam_core.protocol.secure_sum import UNMASK, SecureRequest
from casam_core.protocol.wire import from_records, settings_of, unpacked
from server.run.run_folder import read_arrivals
from tests.disasters.faults import Plan
from tests.disasters.homes import CASES, HELD, SERVER, SITES
from tests.disasters.network import Node, Sent

SAME = ("matrix", "zero_shot", "routing", "holders", "last_iou")
"""Keys of a summary that a disturbed run shares with an undisturbed one."""

QUIET = ("", "no-answer", "unreachable", "unknown-scenario", "repeated")
"""Outcomes that a lost or late message, or a restart, explains."""


@cache
def policy_of(case: str, name: str) -> Policy:
    """A site's policy."""
    return Policy.model_validate(dict(CASES[case].policies.get(name, {})))


class Laws:
    """The laws of one world. broken: every violation, one sentence each."""

    def __init__(self, plan: Plan) -> None:
        self.case = plan.case
        self.damage = any(fault.kind.startswith("damaged") for fault in plan.faults)
        self.ill = {fault.who for fault in plan.faults if fault.kind == "disk"}
        self.broken: list[str] = []
        self.answered: set[tuple[str, str]] = set()
        self.canaries: dict[tuple[str, int], set[str]] = {}
        self.revealed: set[tuple[int, int, str]] = set()
        self.drawn: dict[str, int] = {}
        self.forgiven: set[str] = set()
        self.versions: dict[str, str] = {}  # by node, where it does not run the server's version
        self.entries: dict[tuple[Path, str], str] = {}  # the digest, by the file that names it and task
        self.rotten = any(fault.kind == "rot" for fault in plan.faults)

    def breaks(self, law: str) -> None:
        """Note a violation once."""
        if law not in self.broken:
            self.broken.append(law)

    def left(self, node: Node, sent: Sent, content: RecordDict) -> None:
        """A message leaves a site."""
        reply = from_records(content)
        asked = settings_of(sent.message.content)
        ok, name = reply.config.get("outcome") == "ok", node.name
        for home in (node.machine.root, node.machine.root.with_name(SERVER)):
            self.unchanged(home)
        if not ok and (reply.arrays or reply.metrics):
            self.breaks(f"{name}: a refusal of {sent.kind} holds arrays or numbers")
        if not ok:
            return
        if name in self.versions and sent.kind != "query.identify":
            self.breaks(f"{name}: {sent.kind} left a node of another version")
        files = node.machine.root
        if AUDIT in reply.config:
            head = str(reply.config[AUDIT]).split(":")[1].encode()
            if head not in node.machine.certain(files / "audit.jsonl"):
                self.breaks(f"{name}: {sent.kind} left before its line of the audit log was certain")
        elif "institution" in asked:
            self.breaks(f"{name}: {sent.kind} left without a place in the audit log")
        if (name, sent.id) in self.answered and "institution" in asked:
            self.breaks(f"{name}: answered one {sent.kind} request twice")
        self.answered.add((name, sent.id))
        self.allowed(node, sent, reply, asked)
        if sent.kind == "train":
            self.unmasked(node, sent)

    def unchanged(self, home: Path) -> None:
        """An entry stays what it was when the server's state or a site's bank first named it, except where
        somebody who held its task was unlearned; its file is what its name says."""
        if self.rotten:
            return
        forgotten = {task for site in SITES if policy_of(self.case, site).leaves_at for task in HELD[site]}
        of_server = home.name == SERVER
        for file in home.glob("run-*/state.json" if of_server else "runs/*/bank/manifest.json"):
            bank = file.parent / "bank" if of_server else file.parent
            for task, digest in (held_in(file) if of_server else tasks_of(bank)).items():
                if self.entries.setdefault((file, task), digest) != digest and task not in forgotten:
                    self.breaks(f"{home.name}: the entry of {task} changed")
                entry = bank / "entries" / f"{digest}.entry"
                if entry.exists() and entry_digest(entry.read_bytes()) != digest:
                    self.breaks(f"{home.name}: the file of the entry of {task} changed")

    def allowed(self, node: Node, sent: Sent, reply: Payload, asked: Mapping[str, Any]) -> None:
        """The policy allows what leaves."""
        name, policy = node.name, policy_of(self.case, node.name)
        secret = "secagg" in (policy.adapter.aggregation, policy.router.aggregation)
        forbidden = {
            "train.align": policy.adapter.share == "never" or secret,
            "train.router": policy.router.share == "never" or secret,
            "train.calibrate": policy.router.share == "never" or secret,
            "evaluate.stage": policy.metrics == "never",
        }
        if forbidden.get(sent.kind):
            self.breaks(f"{name}: {sent.kind} left against the policy")
        if "canary" in reply.config:
            stage = int(asked["stage"])
            questions = self.canaries.setdefault((name, stage), set())
            questions.add(str(asked.get("bank")) + str(asked.get("candidates")))
            if len(questions) > policy.canaries and name not in self.forgiven:
                self.breaks(f"{name}: {len(questions)} canaries of stage {stage}, allowed {policy.canaries}")
        noisy = {"train.align": policy.adapter.noise == "dp", "evaluate.stage": policy.metrics == "noisy"}
        if noisy.get(sent.kind):
            bare = digest_of(Payload({}, reply.arrays, reply.metrics))
            kept = list(node.machine.root.glob(f"runs/*/releases/*-{bare}.bin"))
            if not kept or not node.machine.certain(kept[0]):
                self.breaks(f"{name}: a private release ({sent.kind}) left before it was certainly kept")

    def draws(self, node: Node) -> None:
        """A site draws noise: the ledger has a line for it."""
        self.drawn[node.name] = self.drawn.get(node.name, 0) + 1
        lines = node.machine.certain(node.machine.root / "ledger.jsonl").count(b"\n")
        if lines < self.drawn[node.name] and node.name not in self.forgiven:
            self.breaks(f"{node.name}: {self.drawn[node.name]} private releases drawn, {lines} lines certain")

    def unmasked(self, node: Node, sent: Sent) -> None:
        """A node reveals one secret of each member of a sum, the key or the mask's seed, and only once."""
        request = SecureRequest.of(from_records(sent.message.content))
        if request.step != UNMASK:
            return
        # After a new start of the node or of the run, a sum has new keys.
        about = (node.number, sent.run, request.of_run("run", "").id)
        if about in self.revealed:
            self.breaks(f"{node.name}: secrets of one sum are revealed twice")
        self.revealed.add(about)
        told = unpacked(request.protocol)
        alive, gone = told[Key.ACTIVE_NODE_ID_LIST], told[Key.DEAD_NODE_ID_LIST]
        if set(alive) & set(gone):  # type: ignore[arg-type]
            self.breaks(f"{node.name}: both secrets of one member are revealed")

    # ------------------------------------------------------------------------------------ at the end

    def end(self, run: Path, homes: list[Path], usual: dict[str, Any] | None, *, harmless: bool) -> None:
        """A run is finished. usual: what an undisturbed run gives (result); harmless: no file was damaged."""
        for name in ("summary.json", "matrix.csv", "matrix.png", "events.jsonl", "audit.jsonl"):
            if not (run / name).exists():
                self.breaks(f"the finished run has no {name}")
                return
        try:
            events = events_of(run)
        except ValueError:
            self.breaks("a line of events.jsonl is damaged")
            return
        found = result(run)
        for task, digest in found["bank"].items():
            if not (run / "bank" / "entries" / f"{digest}.entry").exists():
                self.breaks(f"the bank's manifest names an entry of {task} that is not there")
        if not harmless:
            return
        try:
            arrivals = read_arrivals(run / "audit.jsonl")
            for home in homes:
                self.logged(home, arrivals)
                self.agree(home, run, events)
        except AuditError as error:
            self.breaks(f"an audit log is damaged: {error}")
        missed = missing(events)
        for event in missed:
            what = str(event.get("outcome") or event.get("reason") or "")
            if (
                what not in QUIET
                and event["institution"] not in self.ill
                and (not self.damage or what == "failed")
            ):
                self.breaks(f"{event['institution']}: {event['event']} {event.get('kind', '')} {what}")
        if usual is not None and not missed and not self.damage and refusals(events) == usual["refusals"]:
            for key in ("bank", *SAME):
                if found[key] != usual[key]:
                    self.breaks(f"no release was lost, and {key} is not that of an undisturbed run")

    def logged(self, home: Path, arrivals: list[Release]) -> None:
        """What arrived is in the site's own log, whose chain is whole."""
        lines = read_log(home / "audit.jsonl")
        places = {line.place for line in lines}
        if broken(lines):
            self.breaks(f"{home.name}: the chain of its audit log is broken")
        for release in arrivals:
            if release.institution == home.name and release.clause and release.clause not in places:
                self.breaks(f"{home.name}: the server holds a release that its audit log lacks")

    def agree(self, home: Path, run: Path, events: list[dict[str, Any]]) -> None:
        """A site that answered the last evaluation has the server's bank."""
        if not policy_of(self.case, home.name).accept_entries:
            return
        heard = [e for e in events if e.get("kind") == "evaluate.stage" and e.get("institution") == home.name]
        banks = list(home.glob(f"runs/{run.name}-*/bank/manifest.json"))
        last = [e for e in events if e["event"] == "asked" and e["kind"] == "evaluate.stage"][-1]
        if not heard or heard[-1]["event"] != "answer" or heard[-1]["stage"] != last["stage"] or not banks:
            return
        if events.index(heard[-1]) < events.index(last):
            return
        own = tasks_of(banks[0].parent)
        if bank_digest(own) != bank_digest(tasks_of(run / "bank")):
            self.breaks(f"{home.name}: its bank is not the server's after it answered")


def missing(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events about answers that did not come or did not count. A copy of the bank that differed was sent
    again; it counts only if no answer came then."""
    place = ("institution", "kind", "stage")
    answered = {
        tuple(event[key] for key in place): number
        for number, event in enumerate(events)
        if event["event"] in ("answer", "refusal", "no-result") and event.get("outcome") != "bank-mismatch"
    }
    return [
        event
        for number, event in enumerate(events)
        if event["event"] in ("no-result", "absent", "rejected", "unregistered")
        and not (
            event.get("outcome") == "bank-mismatch"
            and answered.get(tuple(event.get(key) for key in place), -1) > number
        )
    ]


def tasks_of(bank: Path) -> dict[str, str]:
    """The digests in a bank's manifest, by task."""
    content = json.loads((bank / "manifest.json").read_text())
    return {item["task"]: item["sha256"] for item in content["entries"]}


def held_in(state: Path) -> dict[str, str]:
    """The digests in a server's state, by task."""
    held = json.loads(state.read_text())["state"]["held"]["items"]
    return {item["task"]: item["digest"] for item in held}


def refusals(events: list[dict[str, Any]]) -> list[list[Any]]:
    """Who refused what."""
    return sorted(
        {(e["institution"], e["kind"], e["stage"], e["outcome"]) for e in events if e["event"] == "refusal"}
    )


def events_of(run: Path) -> list[dict[str, Any]]:
    """Without an incomplete last line, as readers see them: power can go after summary.json, before `end`."""
    whole = (run / "events.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def result(run: Path) -> dict[str, Any]:
    """What a run ends with."""
    summary = json.loads((run / "summary.json").read_text())
    events = events_of(run)
    return {key: summary[key] for key in SAME} | {
        "bank": tasks_of(run / "bank"),
        "refusals": refusals(events),
    }
