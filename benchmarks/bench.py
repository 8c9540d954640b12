"""What every benchmark is: a function from its surroundings to named figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from casam_core.backbones import Backbone, load_backbone
from casam_core.compute import prepare_process, resolve_compute
from casam_core.scenario import BackboneSpec, ComputeSpec

Figures = dict[str, float]
"""By name; names say the unit or are shares."""


@dataclass(frozen=True)
class Surroundings:
    """home: folder for what is encoded once. images: at most this many per task, for a shorter run.
    say, show: where lines and tables go."""

    home: Path
    images: int
    threads: int
    say: Callable[[str], None]
    show: Callable[[Table], None]

    def lite_medsam(self) -> Backbone:
        """The packaged backbone on this machine's CPU."""
        compute = resolve_compute(ComputeSpec(device="cpu", threads=self.threads))
        prepare_process(compute)
        return load_backbone(BackboneSpec(name="lite_medsam"), compute)


@dataclass(frozen=True)
class Benchmark:
    """description: one line. run: prints its table and returns its figures."""

    description: str
    run: Callable[[Surroundings], Figures]
