"""Alignment Layers: what is learned per task, between the frozen encoder and decoder.

A form is one file and one line of FORMS. Every layer maps z_BCHW to z_BCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from casam_core.alignment.casam import CasamLayer
from casam_core.alignment.low_rank import LowRankLayer
from casam_core.alignment.residual import ResidualLayer
from casam_core.alignment.scale_shift import ScaleShiftLayer
from casam_core.errors import BankError, ScenarioError
from casam_core.scenario import AlignmentSpec

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Form:
    """build: (channels, spec) -> module. learning_rate: Adam's, when the scenario names none."""

    build: Callable[[int, AlignmentSpec], nn.Module]
    learning_rate: float


FORMS: dict[str, Form] = {
    "casam": Form(lambda channels, spec: CasamLayer(channels), learning_rate=1e-4),
    "residual": Form(lambda channels, spec: ResidualLayer(channels), learning_rate=1e-4),
    "low_rank": Form(lambda channels, spec: LowRankLayer(channels, spec.rank), learning_rate=3e-3),
    "scale_shift": Form(lambda channels, spec: ScaleShiftLayer(channels), learning_rate=3e-3),
}


def form_of(spec: AlignmentSpec) -> Form:
    """The form a scenario names. Raises ScenarioError listing the known ones."""
    if spec.form not in FORMS:
        raise ScenarioError(
            f"alignment.form: expected one of {', '.join(sorted(FORMS))}, found {spec.form!r}"
        )
    return FORMS[spec.form]


def build_layer(spec: AlignmentSpec, channels: int, seed: int) -> nn.Module:
    """A fresh layer; its initial weights depend on `seed` alone."""
    form = form_of(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return form.build(channels, spec)


def learning_rate_of(spec: AlignmentSpec) -> float:
    """The scenario's learning rate or the form's own."""
    return spec.learning_rate if spec.learning_rate is not None else form_of(spec).learning_rate


def weights_of(layer: nn.Module) -> Weights:
    """A layer's parameters as float32 arrays, by name."""
    return {name: value.detach().cpu().float().numpy().copy() for name, value in layer.state_dict().items()}


def set_weights(layer: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Load weights; BankError names what does not fit. The layer is unchanged if anything does not."""
    want = layer.state_dict()
    if want.keys() != weights.keys():
        raise BankError(
            f"layer weights do not fit: missing {sorted(want.keys() - weights.keys())}, "
            f"unexpected {sorted(weights.keys() - want.keys())}"
        )
    for name, value in want.items():
        if tuple(value.shape) != weights[name].shape:
            raise BankError(
                f"layer weight {name}: expected shape {tuple(value.shape)}, found {weights[name].shape}"
            )
    layer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
