"""Entries as ONNX files, so that other programs use them without casam.

One file per task. Its input is frozen SAM's embedding, its outputs are what the entry adds:

    z_BCHW        float32, the encoder's output; any B, H and W
    aligned_BCHW  float32, the embedding for SAM's mask decoder
    score_B       float64, the router's score; the task with the lowest score is the nearest
    found_BNHW    float32, what the entry's finder says of each cell (casam_core.model.forms.finder)

An entry without a threshold has no score, one without a finder that has learned has no found_BNHW.
If the nearest task's score is above its threshold, the image is unknown: decode z_BCHW itself. The threshold
and the SHA-256 of the backbone's weights are in the file's metadata.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from casam_core.errors import ExportError
from casam_core.files import new_folder
from casam_core.model.forms import AlignmentLayer
from casam_core.model.forms.finder import finds
from casam_core.routing.features import FEATURES
from casam_core.routing.routers.public_frame import CAUTION, LOWEST, MOST_NOISE, WIDER, PublicFrameRouter
from casam_use.loaded_bank import LoadedBank, LoadedEntry
from scenarios.export.official import FOLDER_NAME

CELLS = 64
"""H and W of the embedding that the exporter follows; the files accept any."""


class FrameScore(nn.Module):
    """The default router's score (casam_core.routing.routers.public_frame) as operations of torch."""

    def __init__(self, loaded: LoadedEntry) -> None:
        super().__init__()
        assert isinstance(loaded.router, PublicFrameRouter)
        frame, state = loaded.router.frame, loaded.entry.router
        self.pool = FEATURES[loaded.entry.provenance.features]
        own_K = WIDER * torch.from_numpy(frame.scatter_K).double()
        noise = torch.from_numpy(state["noise"]).double().clamp(0, MOST_NOISE)
        weight_K = 1 / (own_K + noise)
        self.kept, self.added = float((weight_K * own_K).mean()), float((weight_K * noise).mean())
        variance = (weight_K.square() * (2 * noise**2 + 4 * noise * own_K)).mean() / len(own_K)
        self.spread = float(variance.sqrt()) / self.kept
        self.noisy = bool(noise > 0)
        self.weight_K: Tensor
        self.mean_K: Tensor
        self.axes_FK: Tensor
        self.mean_F: Tensor
        self.register_buffer("weight_K", weight_K)
        self.register_buffer("mean_K", torch.from_numpy(state["mean_K"]).double())
        self.register_buffer("axes_FK", torch.from_numpy(frame.axes_FK).double())
        self.register_buffer("mean_F", torch.from_numpy(frame.mean_F).double())

    def forward(self, z_BCHW: Tensor) -> Tensor:
        u_BK = (self.pool(z_BCHW).double() - self.mean_F) @ self.axes_FK
        u_BK = u_BK / u_BK.square().sum(1, keepdim=True).sqrt().clamp(min=1.0)
        distance_B = ((u_BK - self.mean_K).square() * self.weight_K).mean(1)
        if self.noisy:
            debiased_B = (distance_B - self.added) / self.kept + CAUTION * self.spread
            distance_B = (debiased_B + (debiased_B.square() + self.spread**2).sqrt()) / 2
        return 0.5 * torch.log(distance_B + LOWEST)


class EntryModule(nn.Module):
    """z_BCHW -> aligned_BCHW, score_B and found_BNHW, as far as the entry has them; `names` says which."""

    def __init__(self, loaded: LoadedEntry) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {"aligned_BCHW": loaded.layer}
        if loaded.entry.threshold is not None:
            parts["score_B"] = FrameScore(loaded)
        if loaded.layer.finder is not None and finds(loaded.entry.layer):
            parts["found_BNHW"] = loaded.layer.finder
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, z_BCHW: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(z_BCHW) for part in self.parts)


def write_onnx(bank: LoadedBank, out: Path) -> list[str]:
    """Write `<task>.onnx` for every entry to the new folder `out`, all of them or none.

    Returns:
        The names of the files.

    Raises:
        ExportError: an entry's router has no ONNX form, its layer changes SAM's mask decoder, or its task is
            no file name.
    """
    for task, loaded in bank.items():
        _check(task, loaded)
    with new_folder(out) as folder:
        for task, loaded in bank.items():
            _write(loaded, folder / f"{task}.onnx")
    return [f"{task}.onnx" for task in bank]


def _check(task: str, loaded: LoadedEntry) -> None:
    router = loaded.entry.provenance.router
    if not FOLDER_NAME.fullmatch(task):
        raise ExportError(f"task {task!r}: expected a name that can be a file name, found another character")
    if type(loaded.layer).decoder is not AlignmentLayer.decoder:
        raise ExportError(
            f"task {task!r}: expected a form that leaves SAM's mask decoder as it is, found "
            f"{loaded.entry.provenance.form!r}, which changes it; use this bank with casam"
        )
    if loaded.entry.threshold is not None and not isinstance(loaded.router, PublicFrameRouter):
        raise ExportError(
            f"task {task!r}: expected the router 'public_frame', found {router!r}, which has no ONNX form; "
            "use this bank with casam"
        )


def _write(loaded: LoadedEntry, path: Path) -> None:
    about, module = loaded.entry.provenance, EntryModule(loaded).eval()
    # Two images, because the exporter would take a first dimension of one for a constant.
    example_BCHW = torch.randn(2, loaded.channels, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    any_size = {0: torch.export.Dim("images"), 2: torch.export.Dim("rows"), 3: torch.export.Dim("columns")}
    program = torch.onnx.export(
        module,
        (example_BCHW,),
        input_names=["z_BCHW"],
        output_names=module.names,
        dynamic_shapes=(any_size,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # it is None only for the old exporter
    threshold = loaded.entry.threshold
    program.model.metadata_props.update(
        {
            "task": loaded.entry.task,
            "threshold": "" if threshold is None else repr(threshold),
            "backbone": about.backbone,
            "form": about.form,
            "router": about.router,
        }
    )
    program.save(path)
