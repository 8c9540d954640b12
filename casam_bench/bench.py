"""What every benchmark is: a function from its surroundings to named figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rich.table import Table

from casam_core.config.scenario import BackboneSpec, ComputeSpec, Scenario
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import prepare_process, resolve_compute

Figures = dict[str, float]
"""By name; names say the unit or are shares."""


class Engines(Protocol):
    """What runs a scenario: scenarios/commands/bench_command.py brings it."""

    def inprocess(self, scenario: Scenario, folder: Path) -> None:
        """A whole run in this process, silently; leaves the run folder."""

    def simulation(self, scenario: Scenario, folder: Path) -> None:
        """The same by a real `flwr run`."""

    def flower_app(
        self,
        app: Path,
        settings: Mapping[str, str | int | float | bool],
        nodes: int,
        say: Callable[[str], None],
    ) -> None:
        """Any Flower app by a real `flwr run`, every line it prints to `say`."""


@dataclass(frozen=True)
class Surroundings:
    """home: folder for what is encoded once. images: at most this many per task, for a shorter run.
    say, show: where lines and tables go. engines: how scenarios and Flower apps are run; this room imports
    none. smoke: small sizes only, for the regression guard. data_root: where real datasets lie, if any."""

    home: Path
    images: int
    threads: int
    say: Callable[[str], None]
    show: Callable[[Table], None]
    engines: Engines
    smoke: bool = False
    data_root: Path | None = None

    def lite_medsam(self, precision: Literal["float32", "auto"] = "float32") -> Backbone:
        """The packaged backbone on this machine's CPU."""
        compute = resolve_compute(ComputeSpec(device="cpu", threads=self.threads, precision=precision))
        prepare_process(compute)
        return load_backbone(BackboneSpec(name="lite_medsam"), compute)


@dataclass(frozen=True)
class Benchmark:
    """description: one line. run: prints its table and returns its figures. hours: takes some, so `--all`
    leaves it out."""

    description: str
    run: Callable[[Surroundings], Figures]
    hours: bool = False
