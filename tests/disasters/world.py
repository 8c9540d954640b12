"""One world: a plan, played from the first start of the server to the end of the run."""

from __future__ import annotations

import os
import shutil
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from flwr.app import RecordDict

from casam_core.errors import CasamError, RunError, RunInputError
from casam_core.protocol.messages import SCHEMA
from client.client_app import forget_institutions
from server.run.run_folder import RunFolder
from server.stream import run_stream
from tests.disasters.clock import Clock, HangError
from tests.disasters.disk import Failing, Machine, PowerCutError
from tests.disasters.faults import HARMLESS, Fault, Plan
from tests.disasters.homes import SERVER, SITES, furnish, node_config, scenario_of
from tests.disasters.laws import Laws, result
from tests.disasters.network import Network, Node, Sent, Weather, Wire
from tests.disasters.storm import Storm

LIMIT = 20_000.0
"""Seconds after which a run hangs: many times what every deadline and retry together allow."""


@dataclass
class Played:
    """What came of a plan. broken: violations. end: how the run ended. story: what happened, in order."""

    plan: Plan
    broken: list[str] = field(default_factory=list)
    end: str = ""
    story: list[str] = field(default_factory=list)
    requests: int = 0
    result: dict[str, Any] | None = None


class World:
    """Machines, network, clock and laws of one plan."""

    def __init__(self, plan: Plan, top: Path) -> None:
        self.plan, self.top = plan, top
        self.clock = Clock(LIMIT)
        self.laws = Laws(plan)
        self.story: list[str] = []
        self.lives = self.folders = 0
        shutil.rmtree(top, ignore_errors=True)
        self.machines: dict[str, Machine] = {}
        for name in (SERVER, *SITES):
            furnish(top / name, plan.case)
            machine = Machine(name, top / name, Random(f"{name} {plan.seed}"), self.clock)
            machine.settle()
            self.machines[name] = machine
        nodes = [Node(self.machines[name], node_config(top / name, i)) for i, name in enumerate(SITES)]
        self.network = Network(self.clock, nodes, Weather())
        self.network.weather = Storm(self)
        self.network.left = self.laws.left
        self.network.stopped = self.stopped
        self.network.altered = self.other_schema
        self.server = self.machines[SERVER]
        self.snapshots: dict[Fault, Path] = {}
        for machine in self.machines.values():
            self.next_cut(machine)
            machine.failing = [
                Failing(f.code, int(f.at), int(f.at + f.amount) - 1)
                for f in plan.faults
                if f.kind == "disk" and f.who == machine.name
            ]
        for fault in plan.faults:
            self.expect(fault)

    # ------------------------------------------------------------------------------------ faults

    def chance(self, what: str, number: float) -> Random:
        """Draws of one thing; they do not depend on other faults."""
        return Random(f"{self.plan.seed} {what} {number}")

    def tell(self, line: str) -> None:
        """Add to the story."""
        self.story.append(f"{self.clock.now:8.2f} s  {line}")

    def expect(self, fault: Fault) -> None:
        """Put a fault that comes at a second into the clock."""
        deeds = {
            "stop": self.kill, "upgrade": self.upgrade, "new-disk": self.new_disk, "rollback": self.roll_back,
            "rot": self.rot, "clock": self.jump, "second-server": self.second_server,
        }  # fmt: skip
        if fault.kind == "rollback":  # first, because both may come at the same moment
            self.clock.at(fault.amount, partial(self.photograph, fault))
        if fault.kind in deeds:
            self.clock.at(fault.at, partial(deeds[fault.kind], fault))

    def next_cut(self, machine: Machine) -> None:
        """Prepare the machine's next power cut."""
        cuts = [f for f in self.plan.faults if f.kind in ("cut", "cut-after") and f.who == machine.name]
        coming = sorted((f for f in cuts if f.at > machine.calls), key=lambda f: f.at)
        machine.cut = int(coming[0].at) if coming else None
        machine.cut_after = bool(coming) and coming[0].kind == "cut-after"

    def pause_after(self, machine: Machine) -> float:
        """How long the machine stays off."""
        cuts = [f for f in self.plan.faults if f.kind in ("cut", "cut-after") and f.who == machine.name]
        gone = [f.amount for f in cuts if f.at <= machine.calls]
        return gone[-1] if gone else 1.0

    def node(self, name: str) -> Node:
        return next(node for node in self.network.nodes if node.name == name)

    def stopped(self, node: Node) -> None:
        """A node's power went while it worked."""
        pause = self.pause_after(node.machine)
        self.tell(f"{node.name} loses power at call {node.machine.calls}; back after {pause:.1f} s")
        self.clock.at(self.clock.now + pause, partial(self.start, node))

    def start(self, node: Node) -> None:
        """A node starts again with what survived."""
        node.machine.reboot()
        self.next_cut(node.machine)
        forget_institutions()
        self.network.connect(node)

    def kill(self, fault: Fault) -> None:
        node = self.node(fault.who)
        if node.machine.on:
            self.tell(str(fault))
            node.machine.on = False
            self.clock.at(self.clock.now + fault.amount, partial(self.start, node))

    def other_schema(self, node: Node, sent: Sent, content: RecordDict) -> None:
        """A node of a newer version says so."""
        if sent.kind == "query.identify" and self.laws.versions.get(node.name) == "newer":
            for record in content.config_records.values():
                if "schema" in record:
                    record["schema"] = SCHEMA + 1

    def upgrade(self, fault: Fault) -> None:
        """The node comes back with another version, and later with the server's."""
        self.tell(str(fault))
        node = self.node(fault.who)

        def restart(version: str | None) -> None:
            if node.machine.on:
                node.machine.on = False
                self.start(node)
            self.laws.versions.pop(node.name, None)
            if version:
                self.laws.versions[node.name] = version

        restart("newer" if fault.code else "other")
        self.clock.at(self.clock.now + fault.amount, partial(restart, None))

    def new_disk(self, fault: Fault) -> None:
        self.tell(str(fault))
        self.exchange_home(fault, None)

    def photograph(self, fault: Fault) -> None:
        self.snapshots[fault] = self.top / f"copy-{len(self.snapshots)}"
        shutil.copytree(self.top / fault.who, self.snapshots[fault])

    def roll_back(self, fault: Fault) -> None:
        self.tell(str(fault))
        self.exchange_home(fault, self.snapshots[fault])

    def exchange_home(self, fault: Fault, copy: Path | None) -> None:
        """The node goes on in another home."""
        node = self.node(fault.who)
        was_on, home = node.machine.on, node.machine.root
        self.laws.forgiven.add(node.name)
        node.machine.on = False
        number = node.machine.root
        for entry in list(os.scandir(number)):
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
        if copy is None:
            furnish(home, self.plan.case)
        else:
            shutil.copytree(copy, home, dirs_exist_ok=True)
        node.machine.settle()
        if was_on:
            self.start(node)

    def rot(self, fault: Fault) -> None:
        """One byte of one file that a hash protects."""
        machine = self.machines[fault.who]
        names = ("*.entry", "state.json", "0*.json", "*.bin", "manifest.json")
        names += ("audit.jsonl", "ledger.jsonl", "sums.jsonl", "questions.jsonl")
        files = sorted(path for name in names for path in machine.root.rglob(name) if path.stat().st_size)
        if files:
            draw = self.chance("rot", fault.at)
            path = draw.choice(files)
            data = bytearray(path.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(data))
            machine.data[path.stat().st_ino] = bytes(data)
            self.tell(f"{fault}: {path.relative_to(self.top)}")

    def jump(self, fault: Fault) -> None:
        self.tell(str(fault))
        self.clock.wall += fault.amount

    def second_server(self, fault: Fault) -> None:
        if not self.server.on or not self.run_folder.exists():
            return
        self.tell(str(fault))
        calls, cut, failing = self.server.calls, self.server.cut, self.server.failing
        self.server.cut, self.server.failing = None, []  # the second one shares the disk, not the fate
        try:
            RunFolder(self.run_folder, scenario_of(self.plan.case)).close()
            if self.living:
                self.laws.breaks("a second server was let onto the run folder")
        except RunError:
            pass
        finally:
            self.server.calls, self.server.cut, self.server.failing = calls, cut, failing

    def again(self, sent: Sent, *, forged: bool) -> None:
        """An earlier request arrives at the same site, wherever its node is now."""
        for node in self.network.nodes:
            if node.number == sent.node and node.machine.on:
                copy = Sent(sent.number, sent.id, sent.run, sent.kind, node.number, sent.data, sent.message)
                if forged:
                    copy.id = f"{sent.id}#{len(self.network.sent)}"
                self.clock.at(self.clock.now + 0.01, partial(self.network.deliver, copy))

    # ------------------------------------------------------------------------------------ the run

    living = False

    @property
    def run_folder(self) -> Path:
        return self.top / SERVER / f"run-{self.folders}"

    def play(self, usual: dict[str, Any] | None) -> Played:
        """Start the server again and again until the run has an end. usual: that of an undisturbed run."""
        end = ""
        for _ in range(len(self.plan.faults) + 4):
            end = self.live()
            if end == "finished":
                break
            self.tell(f"the server stops: {end}")
            if "anew" in end:
                self.folders += 1
            if not self.rest(60.0 if "update" in end else 5.0):  # somebody updates a node
                break
        harmless = all(fault.kind in HARMLESS for fault in self.plan.faults)
        if harmless and self.folders:
            self.laws.breaks("no file was damaged, and finished stages were lost: the run had to start anew")
        if end == "finished":
            homes = [self.top / name for name in SITES]
            self.laws.end(self.run_folder, homes, usual, harmless=harmless)
        elif harmless:
            self.laws.breaks(f"nothing is lost, and the run cannot be finished: {end}")
        found = result(self.run_folder) if end == "finished" and not self.laws.broken else None
        return Played(self.plan, self.laws.broken, end, self.story, len(self.network.sent), found)

    def live(self) -> str:
        """One life of the server; how it ended."""
        self.lives += 1
        scenario = scenario_of(self.plan.case)
        folder = None
        self.living = True
        try:
            known = (self.run_folder / "scenario.json").exists()
            folder = RunFolder(self.run_folder, scenario if known else None)
            grid = Wire(self.network, self.server, self.lives)
            run_stream(grid, scenario, folder, self.top / SERVER / "register.json")
            return "finished"
        except PowerCutError:
            return f"power cut at call {self.server.calls}"
        except HangError as error:
            self.laws.breaks(f"it hangs: {error}")
            return "it hangs"
        except RunInputError as error:
            return "finished" if "finished" in str(error) else str(error)
        except CasamError as error:
            return str(error)
        except OSError as error:
            if not any(f.kind == "disk" and f.who == SERVER for f in self.plan.faults):
                self.laws.breaks(f"the server ends with {type(error).__name__}: {error}")
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.laws.breaks(f"the server ends with {type(error).__name__}: {error} ({where.name})")
            self.story.append(traceback.format_exc())
            return f"{type(error).__name__}"
        finally:
            self.living = False
            if folder is not None and self.server.on:
                folder.close()

    def rest(self, seconds: float) -> bool:
        """The time until the server starts again; False if nothing can happen any more."""
        was_on = self.server.on
        try:
            self.clock.sleep(self.pause_after(self.server) if not was_on else seconds)
        except HangError:
            return False
        if not was_on:
            self.server.reboot()
            self.next_cut(self.server)
        return True
