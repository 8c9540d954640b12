"""Export a finished run's curves to other tools. A new sink needs one file and one line in SINKS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scenarios.export.curves import Curves
from scenarios.export.mlflow import write_mlflow
from scenarios.export.tensorboard import write_tensorboard

Sink = Callable[[Curves, Path], None]
"""(curves of one run, folder of the tool's files) -> None. Writes the whole run or nothing. Raises
ExportError."""

SINKS: dict[str, Sink] = {"tensorboard": write_tensorboard, "mlflow": write_mlflow}
