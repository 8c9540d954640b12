"""Playing a plan: the product with a simulated clock, simulated disks and stubs for learning."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import casam_core.files
import client.client_app
import client.release.outbox
from casam_core.privacy.noise import NoiseSource
from casam_core.protocol.fingerprint import code_fingerprint
from client.client_app import forget_institutions
from tests.disasters.faults import Plan
from tests.disasters.learning import stubbed
from tests.disasters.simulated_os import SimulatedOs
from tests.disasters.world import Played, World

TOP = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())

USUAL: dict[str, dict[str, Any]] = {}
"""What an undisturbed run of a case ends with."""


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """Inside the block, the product uses this world's clock and disks."""
    product = ("casam_core", "client", "server")
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in product]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if getattr(module, "time", None) is time:
                stack.enter_context(patch.object(module, "time", world.clock))
        stack.enter_context(patch.object(casam_core.files, "os", SimulatedOs(world.machines, world.top)))
        stack.enter_context(stubbed())
        stack.enter_context(patch.object(NoiseSource, "from_system", partial(drawn, world)))
        for module in (client.client_app, client.release.outbox):
            stack.enter_context(patch.object(module, "code_fingerprint", partial(version, world)))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def version(world: World) -> str:
    """The fingerprint of the code that the working node runs."""
    other = world.laws.versions.get(world.network.working) == "other"
    return "0123456789abcdef" if other else code_fingerprint()


def drawn(world: World) -> NoiseSource:
    """A draw of noise: the ledger must have paid for it."""
    for node in world.network.nodes:
        if node.name == world.network.working:
            world.laws.draws(node)
    return NoiseSource(bytes(32))


def know(case: str, top: Path | None = None) -> None:
    """Play a case without a fault, once per process."""
    if case not in USUAL:
        calm = play(Plan(0, case, ()), top)
        assert calm.result is not None, calm
        USUAL[case] = calm.result


def play(plan: Plan, top: Path | None = None) -> Played:
    """Play a plan in an empty folder."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    if plan.faults:
        know(plan.case, top)
    folder = (top or TOP) / f"casam-disasters-{os.getpid()}"
    forget_institutions()
    state = Random(f"tokens {plan.seed}")
    try:
        with patch("secrets.token_hex", lambda n=16: f"{state.getrandbits(8 * n):0{2 * n}x}"):
            world = World(plan, folder)
            with simulated(world):
                return world.play(USUAL.get(plan.case))
    finally:
        forget_institutions()
        shutil.rmtree(folder, ignore_errors=True)
