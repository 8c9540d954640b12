"""The official Segment Anything models: vit_b, vit_l and vit_h, from their checkpoint files."""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything.build_sam import sam_model_registry
from torch import Tensor, nn

from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import CheckpointError
from casam_core.files import sha256_of_file
from casam_core.model.backbones.base import Backbone, Geometry
from casam_core.model.compute import Compute

# SHA-256 of Meta's released files (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth).
OFFICIAL_SHA256 = {
    "vit_b": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "vit_l": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "vit_h": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SamBackbone(Backbone):
    """Segment Anything; pixels (0..255) are normalised by mean and standard deviation of its training set."""

    normalisation = "imagenet"

    def normalise(self, x_3hw: Tensor) -> Tensor:
        channels = zip(x_3hw, PIXEL_MEAN, PIXEL_STD, strict=True)
        return torch.stack([(x_hw - mean) / std for x_hw, mean, std in channels])


def load_sam(spec: BackboneSpec, compute: Compute) -> Backbone:
    """An official ViT from `spec.checkpoint`. Raises CheckpointError."""
    expected = spec.sha256 or OFFICIAL_SHA256[spec.name]
    if spec.checkpoint is None:
        raise CheckpointError(
            f"backbone {spec.name!r} needs its official file: give --checkpoint FILE (backbone.checkpoint)"
        )
    path = Path(spec.checkpoint).expanduser()
    state = read_checkpoint(path, expected)
    sam = sam_model_registry[spec.name]()
    load_exactly(sam, state, path)
    return SamBackbone(
        name=spec.name,
        digest=expected,
        geometry=Geometry(side=1024, channels=256, cells=64),
        image_encoder=sam.image_encoder,
        prompt_encoder=sam.prompt_encoder,
        mask_decoder=sam.mask_decoder,
        compute=compute,
    )


def read_checkpoint(path: Path, expected_sha256: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, read without running pickled code. Raises CheckpointError.

    expected_sha256: another file is refused.
    """
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint not found: expected a file at {path}; download it or correct the path"
        )
    found = sha256_of_file(path)
    if found != expected_sha256:
        raise CheckpointError(
            f"wrong checkpoint {path}: expected SHA-256 {expected_sha256}, found {found}; "
            "use that file; only a scenario can accept another one (backbone.sha256)"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no closed list of errors for invalid bytes
        raise CheckpointError(
            f"checkpoint {path} is not a plain weights file: {type(error).__name__}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"checkpoint {path} is not a plain weights file: expected tensors by name, "
            f"found {type(state).__name__}"
        )
    return state


def load_exactly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the state. Raises CheckpointError that names missing, unexpected or wrongly shaped keys."""
    want, have = model.state_dict(), state
    faults = [f"missing {key}" for key in want if key not in have]
    faults += [f"unexpected {key}" for key in have if key not in want]
    faults += [
        f"{key}: expected shape {tuple(want[key].shape)}, found {tuple(have[key].shape)}"
        for key in want
        if key in have and want[key].shape != have[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"checkpoint {path} is of another model: {'; '.join(faults[:3])}{more}")
    model.load_state_dict(state)
