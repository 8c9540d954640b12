"""The parts that a scenario can name: backbones, forms of the Alignment Layer and kinds of router.

This module has their names and keys. Their code is in the packages that the registries name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from casam_core.config.section import ByName, Digest, OneOf, Registry, Section

if TYPE_CHECKING:
    from casam_core.model.backbones import BackboneEntry
    from casam_core.model.forms import FormEntry
    from casam_core.routing.routers.base import RouterEntry


class BackboneSpec(Section):
    """The frozen Segment Anything Model that every institution uses."""

    name: Annotated[str, OneOf(lambda: BACKBONES)] = Field(
        "lite_medsam", description="A name in casam_core.config.named_parts.BACKBONES."
    )
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
    start: Literal["identity", "library"] = Field(
        "identity",
        description="Where training without noise starts. library: from the layer of a public library, if it "
        "is better than frozen SAM on the validation images. For few images, and forms that have libraries.",
    )
    finder: bool = Field(
        False,
        exclude_if=lambda learned: not learned,  # scenarios without one keep their digest
        description="Also learn a finder, which lets an entry segment images without a prompt; it adds "
        "38 KB to the entry.",
    )
    personal: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,  # scenarios without one keep their digest
        description="Each holder of an entry continues its training on its own images. Between the shared "
        "weights and its own it keeps those that are best on its validation images, as a personal entry, "
        "which never leaves. If there are several holders, this entry may have its own router. The summary "
        "gives its IoU beside the shared one's where metrics are exact and nothing has noise.",
    )


DEFAULT_RANK = 8


class RankedSpec(AlignmentSpec):
    """A form that has a rank."""

    rank: int = Field(DEFAULT_RANK, ge=1, le=256, description="Directions in which channels are mixed.")


class LowRankSpec(RankedSpec):
    """Form `low_rank`, the default."""

    form: Literal["low_rank"] = "low_rank"


class LowRankDecoderSpec(RankedSpec):
    """Form `low_rank_decoder`: it also adds updates of rank 1 to the attention of SAM's mask decoder."""

    form: Literal["low_rank_decoder"] = "low_rank_decoder"


class LoraSpec(RankedSpec):
    """Form `lora`."""

    form: Literal["lora"] = "lora"
    rank: int = Field(DEFAULT_RANK, ge=1, le=256, description="Rank of the updates.")


FORMS: Registry[FormEntry] = Registry(
    "casam_core.model.forms",
    {
        "low_rank": LowRankSpec,
        "low_rank_decoder": LowRankDecoderSpec,
        "residual": AlignmentSpec,
        "casam": AlignmentSpec,
        "scale_shift": AlignmentSpec,
        "identity": AlignmentSpec,
        "decoder": AlignmentSpec,
        "lora": LoraSpec,
    },
)


SHIPPED_LIBRARIES: dict[tuple[str, str, int], str] = {
    ("lite_medsam", "low_rank", 8): "bf01da65662d68269adc7b906c628b7a2566dc97392930f2f66dbf2c0c4dd3e9",
}
"""(backbone, form, rank or 0) -> digest of the layer library that casam ships."""


class RouterSpec(Section):
    """How the router recognises the task of a new image, and when an image is unknown.

    Some kinds of router have more keys.
    """

    kind: str = Field(description="A name in casam_core.config.named_parts.ROUTERS.")
    features: Literal["attention", "moments"] = Field(
        "moments",
        description="How an embedding becomes one vector. moments: mean and standard deviation of each "
        "channel. attention: a mean in which strong cells count more, as in the paper.",
    )
    folds: int = Field(5, ge=2, le=10, description="Folds of the cross-validation that sets the threshold.")
    percentile: float = Field(
        97.0, gt=0, le=100, description="The threshold: this percentile of the held-out scores."
    )
    margin: float = Field(
        1.5, ge=0, description="Raise the threshold by so many times its distance from the median; paper: 0."
    )

    @property
    def constant(self) -> float | None:
        """The one threshold of all tasks; None if each task's threshold is fitted to held-out scores."""
        return None

    def completed(self, backbone: BackboneSpec) -> RouterSpec:
        """The section with the defaults that depend on the backbone."""
        return self


SHIPPED_FRAMES: dict[tuple[str, str], str] = {
    ("lite_medsam", "attention"): "8b7e4d3fc579e7d2ac482d64c096452cc9b556cdf84d4b887fbf4cedf81eaa24",
    ("lite_medsam", "moments"): "99ab41abaa0ad5e2d444afaa6c6a2e8012a0857291c00234098131d7f2193909",
    ("tiny", "attention"): "10543b5a87985280ec092423e65ee823846ab74933be005ac7ae4e728cee7814",
    ("tiny", "moments"): "c309ba5be14812ce17741a55701107720c52748387b7811a196847927ff31f9a",
}
"""(backbone, features) -> digest of the frame that casam ships (casam_core/routing/public_frames.py)."""


class PublicFrameSpec(RouterSpec):
    """Router `public_frame`, the default: a mean in a fixed public frame per task."""

    kind: Literal["public_frame"] = "public_frame"
    frame: Digest | None = Field(
        None,
        description="SHA-256 of the frame. Default: the frame that casam ships for the backbone; if there is "
        "none, `casam run` makes one from phantoms.",
    )
    threshold: float | Literal["fitted"] = Field(
        0.12,
        description="The score above which an image is unknown. fitted: each task has its own threshold, "
        "from its held-out scores, as in other routers.",
    )

    @property
    def constant(self) -> float | None:
        return None if self.threshold == "fitted" else self.threshold

    def completed(self, backbone: BackboneSpec) -> RouterSpec:
        shipped = SHIPPED_FRAMES.get((backbone.name, self.features)) if backbone.sha256 is None else None
        return self if self.frame or not shipped else self.model_copy(update={"frame": shipped})


class GaussianSpec(RouterSpec):
    """Router `gaussian`: a mean and a covariance per task."""

    kind: Literal["gaussian"] = "gaussian"
    shrinkage: float = Field(0.3, ge=0, le=1, description="Shrinkage of the covariance to its diagonal.")
    directions: int = Field(
        32, ge=0, le=512, description="Stored directions of the covariance; 2 KB each at 512 features."
    )


class VaeSpec(RouterSpec):
    """Router `vae`, the paper's: a variational autoencoder per task."""

    kind: Literal["vae"] = "vae"
    epochs: int = Field(10, ge=1, description="Passes over the features.")
    learning_rate: float = Field(5e-4, gt=0, description="Learning rate of Adam.")
    batch: int = Field(6, ge=1, description="Features per step.")
    beta: float = Field(16.5, ge=0, description="Weight of the KL term in the score.")
    sampled: bool = Field(False, description="Sample the latent for a score, as the authors' code does.")


ROUTERS: Registry[RouterEntry] = Registry(
    "casam_core.routing.routers",
    {
        "public_frame": PublicFrameSpec,
        "gaussian": GaussianSpec,
        "nearest_mean": RouterSpec,
        "vae": VaeSpec,
    },
)

BY_FORM = ByName("form", "low_rank", FORMS.sections)
BY_KIND = ByName("kind", "public_frame", ROUTERS.sections)
"""The tables of a scenario whose keys depend on a name in them."""
