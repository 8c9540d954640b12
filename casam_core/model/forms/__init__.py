"""Alignment Layers: the part that is learned per task, between the frozen encoder and decoder.

A form is a class, a line of ENTRIES, and its name and keys in casam_core/config/named_parts.py. A layer maps
z_BCHW to z_BCHW; only two forms replace a part of SAM itself (casam_core.model.forms.base).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from casam_core.config.named_parts import DEFAULT_RANK, FORMS, AlignmentSpec, LowRankSpec, RankedSpec
from casam_core.config.section import known_keys
from casam_core.errors import BankError, ScenarioError
from casam_core.model.backbones import Backbone
from casam_core.model.forms.affine import IdentityLayer, LowRankLayer, ScaleShiftLayer
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.forms.casam import CasamLayer
from casam_core.model.forms.decoder import DecoderLayer
from casam_core.model.forms.finder import Finder, with_all_kinds
from casam_core.model.forms.lora import LoraLayer
from casam_core.model.forms.low_rank_decoder import LowRankDecoderLayer
from casam_core.model.forms.residual import ResidualLayer
from casam_core.seeding import initialisers_from

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FormEntry:
    """One form: a line of ENTRIES.

    build: (its section, channels, backbone) -> layer.
    learning_rate: Adam's default; None if there is nothing to learn.
    section: its keys in a scenario; for the forms of casam, casam_core/config/named_parts.py has them.
    changes_sam: the layer is a part of SAM itself, and needs a loaded backbone.
    private: it can be trained with differential privacy: it stands between encoder and decoder, and the
        gradient of an image does not depend on other images.
    """

    build: Callable[[Any, int, Backbone | None], AlignmentLayer]
    learning_rate: float | None
    section: type[AlignmentSpec] = AlignmentSpec
    changes_sam: bool = False
    private: bool = False


ENTRIES: dict[str, FormEntry] = {
    "low_rank": FormEntry(
        lambda spec, channels, _: LowRankLayer(channels, spec.rank),
        learning_rate=3e-3,
        private=True,
    ),
    "low_rank_decoder": FormEntry(
        lambda spec, channels, _: LowRankDecoderLayer(channels, spec.rank), learning_rate=3e-3
    ),
    "residual": FormEntry(lambda _, channels, __: ResidualLayer(channels), learning_rate=1e-4, private=True),
    "casam": FormEntry(lambda _, channels, __: CasamLayer(channels), learning_rate=1e-4, private=True),
    "scale_shift": FormEntry(
        lambda _, channels, __: ScaleShiftLayer(channels), learning_rate=3e-3, private=True
    ),
    "identity": FormEntry(lambda _, channels, __: IdentityLayer(channels), learning_rate=None),
    "decoder": FormEntry(
        lambda spec, _, backbone: DecoderLayer(needed(spec, backbone)), learning_rate=1e-4, changes_sam=True
    ),
    "lora": FormEntry(
        lambda spec, _, backbone: LoraLayer(needed(spec, backbone), spec.rank),
        learning_rate=1e-3,
        changes_sam=True,
    ),
}


def form_entry(form: str) -> FormEntry:
    """The form of that name. Raises ScenarioError that lists the known names."""
    if form not in FORMS:
        raise ScenarioError(f"alignment.form: expected one of {', '.join(sorted(FORMS))}, found {form!r}")
    return FORMS[form]


def form_spec(form: str, settings: Mapping[str, Any] | None = None) -> AlignmentSpec:
    """The section of a form with the known keys of `settings`. Raises ScenarioError for an unknown form."""
    return known_keys(form_entry(form).section, {**(settings or {}), "form": form})


def rank_of(spec: AlignmentSpec) -> int:
    """The rank of the form; the default for forms without a rank, because every entry records one."""
    return spec.rank if isinstance(spec, RankedSpec) else DEFAULT_RANK


def changes_sam(form: str) -> bool:
    """Whether layers of this form are a part of SAM itself."""
    return form in FORMS and FORMS[form].changes_sam


def private_forms() -> list[str]:
    """The forms that can be trained with noise."""
    return [name for name in FORMS if FORMS[name].private]


def needed(spec: AlignmentSpec, backbone: Backbone | None) -> Backbone:
    """The backbone that a form needs to change SAM itself. Raises ScenarioError if it is None."""
    if backbone is None:
        raise ScenarioError(
            f"alignment.form {spec.form!r} changes SAM itself and is only for comparisons: expected a loaded "
            "backbone, found none; outside of `casam run` and `casam compare`, use another form"
        )
    return backbone


def build_layer(
    spec: AlignmentSpec, channels: int, seed: int, backbone: Backbone | None = None
) -> AlignmentLayer:
    """A new layer. Raises ScenarioError for an unknown form, or one that has no finder.

    channels: of an embedding. seed: of the initial weights. backbone: needed by forms that change SAM itself.
    """
    entry = form_entry(spec.form)
    if spec.finder and entry.changes_sam:
        raise ScenarioError(
            f"alignment.finder: expected false with form {spec.form!r}, which changes SAM itself; leave "
            "it out, or use another form"
        )
    with initialisers_from(seed):
        layer = entry.build(spec, channels, backbone)
        if spec.finder:  # after the layer, whose initial weights stay the same
            layer.finder = Finder(channels)
    return layer


def learning_rate_of(spec: AlignmentSpec) -> float:
    """The scenario's learning rate, or the form's default. Raises ScenarioError if it cannot learn."""
    default = form_entry(spec.form).learning_rate
    if default is None:
        raise ScenarioError(
            f"alignment.form: expected one that learns, found {spec.form!r}; "
            "for frozen SAM set method = 'frozen'"
        )
    return spec.learning_rate if spec.learning_rate is not None else default


def weights_of(layer: nn.Module) -> Weights:
    """A layer's parameters as float32 arrays, by name."""
    return {name: value.detach().cpu().float().numpy().copy() for name, value in layer.state_dict().items()}


def set_weights(layer: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Load weights. Raises BankError that names a weight that does not fit; then the layer is unchanged."""
    want, weights = layer.state_dict(), with_all_kinds(weights)
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


__all__ = [
    "FORMS",
    "AlignmentLayer",
    "FormEntry",
    "LowRankSpec",
    "Weights",
    "build_layer",
    "changes_sam",
    "form_entry",
    "form_spec",
    "learning_rate_of",
    "private_forms",
    "rank_of",
    "set_weights",
    "weights_of",
]
