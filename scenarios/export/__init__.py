"""A finished run's curves for tools people already have. A sink is one file and one line of SINKS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scenarios.export.curves import Curves
from scenarios.export.mlflow import write_mlflow
from scenarios.export.tensorboard import write_tensorboard

Sink = Callable[[Curves, Path], None]
"""(curves of one run, folder of the tool's files) -> None. Raises ExportError; a run is written wholly or
not."""

SINKS: dict[str, Sink] = {"tensorboard": write_tensorboard, "mlflow": write_mlflow}
