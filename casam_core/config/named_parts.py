"""The parts that a scenario can name: backbones, forms of the Alignment Layer and kinds of router.

This module has their names and keys. Their code is in the packages that the registries name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from casam_core.config.registry import Registry
from casam_core.config.section import ByName, OneOf, Section

if TYPE_CHECKING:
    from casam_core.model.backbones import BackboneEntry
    from casam_core.model.forms import FormEntry
    from casam_core.routing.routers.base import RouterEntry


class BackboneSpec(Section):
    """The frozen Segment Anything Model that every institution uses."""

    name: Annotated[str, OneOf(lambda: BACKBONES)] = "lite_medsam"
    checkpoint: str | None = Field(None, description="Path of an official SAM checkpoint (vit_*).")
    sha256: str | None = Field(None, description="Expected SHA-256, if it differs from the official one.")


BACKBONES: Registry[BackboneEntry] = Registry(
    "casam_core.model.backbones",
    dict.fromkeys(("tiny", "lite_medsam", "vit_b", "vit_l", "vit_h"), BackboneSpec),
)


class AlignmentSpec(Section):
    """The Alignment Layer's form and its learning rate; some forms have more keys."""

    form: str = Field(description="A name in casam_core.config.named_parts.FORMS.")
    learning_rate: float | None = Field(None, gt=0, description="Default: the learning rate of the form.")


DEFAULT_RANK = 8


class LowRankSpec(AlignmentSpec):
    """Form `low_rank`, the default."""

    form: Literal["low_rank"] = "low_rank"
    rank: int = Field(DEFAULT_RANK, ge=1, le=256, description="Directions in which channels are mixed.")


class LoraSpec(AlignmentSpec):
    """Form `lora`."""

    form: Literal["lora"] = "lora"
    rank: int = Field(DEFAULT_RANK, ge=1, le=256, description="Rank of the updates.")


FORMS: Registry[FormEntry] = Registry(
    "casam_core.model.forms",
    {
        "low_rank": LowRankSpec,
        "residual": AlignmentSpec,
        "casam": AlignmentSpec,
        "scale_shift": AlignmentSpec,
        "identity": AlignmentSpec,
        "decoder": AlignmentSpec,
        "lora": LoraSpec,
    },
)


class RouterSpec(Section):
    """How the router recognises the task of a new image, and when an image is unknown.

    Some kinds of router have more keys.
    """

    kind: str = Field(description="A name in casam_core.config.named_parts.ROUTERS.")
    features: Literal["attention", "moments"] = Field("moments", description="How an embedding is pooled.")
    folds: int = Field(5, ge=2, le=10, description="Folds of the cross-validation that sets the threshold.")
    percentile: float = Field(
        97.0, gt=0, le=100, description="The threshold: this percentile of the held-out scores."
    )
    margin: float = Field(
        1.5, ge=0, description="Raise the threshold by this share of its distance from the median; paper: 0."
    )


class GaussianSpec(RouterSpec):
    """Router `gaussian`, the default: a mean and a covariance per task."""

    kind: Literal["gaussian"] = "gaussian"
    shrinkage: float = Field(0.3, ge=0, le=1, description="Shrinkage towards the diagonal.")
    directions: int = Field(
        32, ge=0, le=512, description="Stored directions of the covariance; 2 KB each at 512 features."
    )


class VaeSpec(RouterSpec):
    """Router `vae`, the paper's: a variational autoencoder per task."""

    kind: Literal["vae"] = "vae"
    epochs: int = Field(10, ge=1, description="Passes over the features.")
    learning_rate: float = Field(5e-4, gt=0, description="Of Adam.")
    batch: int = Field(6, ge=1, description="Features per step.")
    beta: float = Field(16.5, ge=0, description="Weight of the KL term in the score.")
    sampled: bool = Field(False, description="Sample the latent for a score, as the authors' code does.")


ROUTERS: Registry[RouterEntry] = Registry(
    "casam_core.routing.routers",
    {"gaussian": GaussianSpec, "nearest_mean": RouterSpec, "vae": VaeSpec},
)

BY_FORM = ByName("form", "low_rank", FORMS.sections)
BY_KIND = ByName("kind", "gaussian", ROUTERS.sections)
"""The tables of a scenario whose keys depend on a name in them."""
