"""Import and export the checkpoint files of the CA-SAM authors' released code.

    adapters_ckpt/<task>/align_cnn_3.pth   the Alignment Layer, our form `casam`
    vaes_ckpt/<task>/vae.pth               the task's VAE, our router `vae` on `attention` features
    vaes_ckpt/<task>/tau.json              its threshold, read from `tau_suggested` alone

The import is strict: it names every missing, unexpected or wrong key or shape, and writes nothing. It also
refuses `module.` before every key (a checkpoint saved through DataParallel) and a `tau.json` without
`tau_suggested`; it does not use the other percentiles or the authors' built-in numbers instead.

The files name neither their backbone (default: SAM ViT-B), nor the order of the tasks, nor the holders (none
in the entry). Some do not name the number of images (0 in the entry).
The export writes the fields of tau.json that an entry holds: tau_suggested and n_samples.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.bank.entry_file import Entry, Provenance
from casam_core.errors import BankError
from casam_core.files import new_folder
from casam_core.model.forms.casam import BLOCKS, attention_kernel
from casam_core.routing.decision import IDENTITY
from casam_core.routing.routers.vae import HIDDEN, LATENT
from scenarios.inspection.verify import IMPORTED

ADAPTERS, VAES = "adapters_ckpt", "vaes_ckpt"
LAYER_FILE, VAE_FILE, TAU_FILE = "align_cnn_3.pth", "vae.pth", "tau.json"
CHANNELS = 256
BETA = 16.5
"""Weight of the KL term in the authors' score; their files do not contain it."""

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")

Arrays = dict[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]


def _layer_names() -> dict[str, str]:
    names = {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
    for i in range(BLOCKS):
        for part in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
            names[f"layers.{i}.{part}"] = f"layers.{i}.{part}"
        names[f"layers.{i}.conv.weight"] = f"layers.{i}.attention.conv.weight"
    return names


def _layer_shape(official: str) -> tuple[int, ...]:
    if official.endswith(".conv.weight"):
        return (1, 1, attention_kernel(CHANNELS))
    if official.endswith((".conv1.weight", ".conv2.weight")):
        return (CHANNELS, CHANNELS, 3, 3)
    return (CHANNELS,)


LAYER_NAMES = _layer_names()
"""By the authors' name of a weight: our name."""

LAYER_SHAPES: Shapes = {official: _layer_shape(official) for official in LAYER_NAMES}

VAE_SHAPES: Shapes = {
    f"{name}.{part}": shape
    for name, rows, columns in (
        ("enc_fc1", HIDDEN, CHANNELS),
        ("enc_fc2_mu", LATENT, HIDDEN),
        ("enc_fc2_logvar", LATENT, HIDDEN),
        ("dec_fc1", HIDDEN, LATENT),
        ("dec_fc2", CHANNELS, HIDDEN),
    )
    for part, shape in (("weight", (rows, columns)), ("bias", (rows,)))
}


def official_tasks(folder: Path) -> list[str]:
    """Names of the task folders, sorted. Raises BankError unless both trees hold the same tasks."""
    found = {}
    for tree in (ADAPTERS, VAES):
        if not (folder / tree).is_dir():
            raise BankError(f"{folder}: expected the folders {ADAPTERS}/ and {VAES}/, found no {tree}/")
        names = [path.name for path in (folder / tree).iterdir() if path.is_dir()]
        found[tree] = {name for name in names if not name.startswith(".")}
    if lacking := sorted(found[ADAPTERS] ^ found[VAES]):
        raise BankError(
            f"{folder}: expected every task below both {ADAPTERS}/ and {VAES}/, found only one of the two "
            f"for {', '.join(lacking)}; add or remove it"
        )
    if not found[VAES]:
        raise BankError(f"{folder}: expected a folder per task in {ADAPTERS}/, found none")
    return sorted(found[VAES])


def read_official(
    folder: Path, *, backbone: str, order: Sequence[str] | None = None, sampled: bool = False
) -> list[Entry]:
    """Entries of all tasks.

    Args:
        folder: The folder with adapters_ckpt/ and vaes_ckpt/.
        backbone: SHA-256 of the weights behind which the files were trained.
        order: All task names in learning order; by default sorted. Only ties between equal scores depend
            on it.
        sampled: Compute scores with a sampled latent, as the authors' code does, instead of its mean.

    Raises:
        BankError: A file is missing or wrong, or `order` does not name every task once.
    """
    tasks = official_tasks(folder)
    if order is not None and sorted(order) != tasks:
        raise BankError(f"order: expected each of {', '.join(tasks)} once, found {', '.join(order)}")
    return [
        _read_task(folder, task, stage, backbone, sampled) for stage, task in enumerate(order or tasks, 1)
    ]


def _read_task(folder: Path, task: str, stage: int, backbone: str, sampled: bool) -> Entry:
    if task == IDENTITY:
        raise BankError(f"{folder}: no task can be named {IDENTITY!r}; rename its folders")
    layer = read_weights(folder / ADAPTERS / task / LAYER_FILE, LAYER_SHAPES)
    router = read_weights(folder / VAES / task / VAE_FILE, VAE_SHAPES)
    threshold, images = read_tau(folder / VAES / task / TAU_FILE)
    return Entry(
        task=task,
        layer={LAYER_NAMES[name]: value for name, value in layer.items()},
        router=dict(router),
        threshold=threshold,
        provenance=Provenance(
            form="casam",
            rank=8,  # only low_rank uses it; this is the scenario's default
            router="vae",
            features="attention",
            beta=BETA,
            sampled=sampled,
            backbone=backbone,
            holders=(),
            images=images,
            stage=stage,
            scenario=IMPORTED,
        ),
    )


def read_weights(path: Path, shapes: Shapes) -> Arrays:
    """A checkpoint's arrays, with exactly these names and shapes. Runs no pickled code. Raises BankError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BankError(
            f"{path} is missing; every task needs {LAYER_FILE}, {VAE_FILE}, {TAU_FILE}"
        ) from error
    except Exception as error:  # torch may raise any error for bytes that are not a checkpoint
        raise BankError(
            f"{path}: expected a plain weights file, found something else ({type(error).__name__}); "
            "save it again with torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BankError(f"{path}: expected tensors by name, found {type(state).__name__}")
    if state and all(name.startswith("module.") for name in state):
        raise BankError(
            f"{path}: every key starts with 'module.' (saved through DataParallel); "
            "save model.module.state_dict() instead"
        )
    if faults := _faults(state, shapes):
        raise BankError(f"{path} is not a checkpoint of the method: {_few(faults)}")
    return {name: state[name].detach().numpy().copy() for name in shapes}


def _faults(state: Mapping[str, Any], shapes: Shapes) -> list[str]:
    faults = [f"unexpected {name}" for name in state if name not in shapes]
    faults += [f"missing {name}" for name in shapes if name not in state]
    for name, shape in shapes.items():
        value = state.get(name)
        if name not in state:
            continue
        if not isinstance(value, Tensor):
            faults.append(f"{name}: expected a float32 tensor, found {type(value).__name__}")
        elif value.dtype != torch.float32 or value.layout != torch.strided:
            kind = value.dtype if value.layout == torch.strided else value.layout
            faults.append(f"{name}: expected a float32 tensor, found {kind}")
        elif tuple(value.shape) != shape:
            faults.append(f"{name}: expected shape {shape}, found {tuple(value.shape)}")
        elif not torch.isfinite(value).all():
            faults.append(f"{name}: expected finite values")
    return faults


def read_tau(path: Path) -> tuple[float, int]:
    """(tau_suggested, n_samples or 0). Raises BankError."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BankError(
            f"{path} is missing; every task needs {LAYER_FILE}, {VAE_FILE}, {TAU_FILE}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BankError(f"{path}: expected JSON, found something else ({type(error).__name__})") from error
    if not isinstance(content, dict) or "tau_suggested" not in content:
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise BankError(
            f"{path}: expected the field tau_suggested, found {found or 'no field'}; write the threshold "
            "under that name, because no other field is used"
        )
    tau, images = content["tau_suggested"], content.get("n_samples", 0)
    if not _is_finite(tau):
        raise BankError(f"{path}: tau_suggested: expected a finite number, found {tau!r}")
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        raise BankError(f"{path}: n_samples: expected a count of images, found {images!r}")
    return float(tau), images


def write_official(entries: Iterable[Entry], out: Path, *, backbone: str) -> None:
    """Write the authors' file tree to the new folder `out`, completely or not at all. Raises BankError.

    backbone: SHA-256 of the backbone that every entry must have, because the files cannot name it.
    """
    known = list(entries)
    for entry in known:
        _check_exportable(entry, backbone)
    with new_folder(out) as folder:
        for entry in known:
            adapter, vae = folder / ADAPTERS / entry.task, folder / VAES / entry.task
            adapter.mkdir(parents=True)
            vae.mkdir(parents=True)
            layer = {official: entry.layer[ours] for official, ours in LAYER_NAMES.items()}
            torch.save(_tensors(layer), adapter / LAYER_FILE)
            torch.save(_tensors({name: entry.router[name] for name in VAE_SHAPES}), vae / VAE_FILE)
            assert entry.threshold is not None  # else it was not exportable
            tau: dict[str, float | int] = {"tau_suggested": entry.threshold}
            if entry.provenance.images:
                tau["n_samples"] = entry.provenance.images
            (vae / TAU_FILE).write_text(json.dumps(tau, indent=2) + "\n")


def _check_exportable(entry: Entry, backbone: str) -> None:
    about, faults = entry.provenance, []
    for name, want, found in (
        ("form", "casam", about.form),
        ("router", "vae", about.router),
        ("features", "attention", about.features),
        ("beta", BETA, about.beta),
        ("backbone", backbone, about.backbone),
    ):
        if want != found:
            faults.append(f"{name}: expected {want}, found {found}")
    if not faults:
        ours = {LAYER_NAMES[name]: shape for name, shape in LAYER_SHAPES.items()}
        faults += _faults(_tensors(entry.layer), ours) + _faults(_tensors(entry.router), VAE_SHAPES)
    if entry.threshold is None or not math.isfinite(entry.threshold):
        faults.append(f"threshold: expected a finite number, found {entry.threshold}")
    if not FOLDER_NAME.fullmatch(entry.task):
        faults.append("its name cannot be a folder name")
    if faults:
        raise BankError(f"task {entry.task!r} cannot be written as the authors' files: {_few(faults)}")


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    # The authors' files are float32; an entry may hold float16 (casam_core.bank.entries).
    return {
        name: torch.from_numpy(np.array(value, np.float32 if value.dtype == np.float16 else None))
        for name, value in arrays.items()
    }


def _is_finite(value: object) -> bool:
    """Whether JSON gave a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _few(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
    return "; ".join(faults[:6]) + more
