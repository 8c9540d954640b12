"""TensorBoard: one event file per run, in a folder with the run's name, written by PyTorch."""

from __future__ import annotations

from pathlib import Path

from casam_core.errors import ExportError, optional_module
from casam_core.files import new_folder
from scenarios.export.curves import Curves


def write_tensorboard(curves: Curves, out: Path) -> None:
    """Write the run; show it with `tensorboard --logdir OUT`. Raises ExportError."""
    # PyTorch's own module, which imports the package tensorboard.
    module = optional_module(
        "torch.utils.tensorboard", wanted="--to tensorboard", extra="tensorboard", error=ExportError
    )
    folder = out / curves.label
    if folder.exists():
        raise ExportError(f"{folder} exists already; was {curves.label} exported before? Name another --out")
    with new_folder(folder) as unfinished, module.SummaryWriter(str(unfinished)) as writer:
        for point in curves.points:
            writer.add_scalar(point.tag, point.value, point.step, walltime=point.time)
        facts = "\n".join(f"- {name}: {value}" for name, value in curves.facts.items())
        writer.add_text("run", facts, 0, walltime=curves.started)
