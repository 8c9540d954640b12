"""Public libraries of layers: a start for private training, and what gradients of public images look like.

A library is one public file (casam_core.config.public_files), made from phantoms (and other public images) by
`casam scenarios library`. It holds, for one backbone and one form:

    shared:      the weights that all layers have in common and that private training leaves as they are
                 (of low_rank: the matrix that reduces the channels),
    joint:       the other weights of one layer for all public tasks together,
    directions:  K orthonormal directions of these other weights, along which public gradients are longest,
    shares:      how much of the square of a gradient's length lies along each of them.

The start `identity`, which is frozen SAM, is not stored. Nothing in a library depends on an image of an
institution.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.public_files import PublicFiles, packed, unpacked
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError, ScenarioError
from casam_core.model.forms import AlignmentLayer, Weights
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers.public_frame import frame_named

IDENTITY, JOINT = "identity", "joint"
"""The starts: frozen SAM, and the layer of all public tasks together."""
MOST_DIRECTIONS = 256


@dataclass(frozen=True, eq=False)
class LayerLibrary:
    """See the docstring of the module; all arrays are float32 that fit float16.

    directions: by weight, an array with K in front of the weight's shape. shares_K: each at least 0, together
    less than 1; the rest of a gradient may lie anywhere. about: for people: form, images.
    """

    shared: Weights
    joint: Weights
    directions: Weights
    shares_K: NDArray[np.float64]
    about: Mapping[str, Any]

    @cached_property
    def length(self) -> float:
        """The length of the way from frozen SAM to the joint layer."""
        return float(np.linalg.norm(np.concatenate([value.ravel() for value in self.joint.values()])))

    def rows(self, names: Sequence[str]) -> NDArray[np.float64]:
        """directions_KD as rows of one matrix, over the weights of these names in this order."""
        parts = [self.directions[name].reshape(len(self.shares_K), -1) for name in names]
        return np.concatenate(parts, axis=1).astype(np.float64)

    def starts(self) -> dict[str, Weights]:
        """The weights of each start, by name."""
        zero = {name: np.zeros_like(value) for name, value in self.joint.items()}
        return {IDENTITY: {**self.shared, **zero}, JOINT: {**self.shared, **self.joint}}

    def fits(self, layer: AlignmentLayer) -> bool:
        """Whether the library is for layers of this form, rank and number of channels."""
        own = {name: value.shape for name, value in self.starts()[JOINT].items()}
        return own == {name: tuple(value.shape) for name, value in layer.state_dict().items()}

    def to_bytes(self) -> bytes:
        """The library's file: JSON, as the Flower bundle takes only text."""
        content = {
            "about": dict(self.about),
            "shared": pack(self.shared),
            "joint": pack(self.joint),
            "directions": pack(self.directions),
            "shares": self.shares_K.tolist(),
        }
        return (json.dumps(content, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> LayerLibrary:
        """Read a library. Raises BankError for bytes that are not one, or numbers that are out of range."""
        try:
            content = json.loads(data)
            if "starts" in content:
                raise ValueError("it is of an earlier version; make it again: casam scenarios library FILE")
            library = LayerLibrary(
                shared=unpack(content["shared"]),
                joint=unpack(content["joint"]),
                directions=unpack(content["directions"]),
                shares_K=np.array(content["shares"], np.float64),
                about=dict(content["about"]),
            )
            library.check()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, binascii.Error) as error:
            raise BankError(f"not the file of a layer library: {type(error).__name__}: {error}") from error
        return library

    def check(self) -> None:
        """Raise ValueError if its parts do not fit each other."""
        free = {name: value.shape for name, value in self.joint.items()}
        if not free or {name: rows.shape[1:] for name, rows in self.directions.items()} != free:
            raise ValueError("the joint layer has other weights than the directions")
        if free.keys() & self.shared.keys():
            raise ValueError("a weight is shared and in the joint layer")
        counts = {len(rows) for rows in self.directions.values()} | {self.shares_K.size}
        if self.shares_K.ndim != 1 or len(counts) != 1 or not 0 < min(counts) <= MOST_DIRECTIONS:
            raise ValueError(
                f"expected 1 to {MOST_DIRECTIONS} directions with a share, found {sorted(counts)}"
            )
        if not (self.shares_K >= 0).all() or not 0 < self.shares_K.sum() < 1:
            raise ValueError("expected shares of at least 0, together between 0 and 1")
        rows_KD = self.rows(sorted(free))
        if not np.allclose(rows_KD @ rows_KD.T, np.eye(len(rows_KD)), atol=0.05):
            raise ValueError("expected orthonormal directions")
        if not self.length > 0:
            raise ValueError("the joint layer is frozen SAM")


def pack(weights: Weights) -> dict[str, Any]:
    """Weights as JSON holds them, in half precision."""
    return {name: packed(value, "float16") for name, value in weights.items()}


def unpack(content: Mapping[str, Mapping[str, Any]]) -> Weights:
    """The weights again. Raises KeyError, TypeError or ValueError."""
    return {str(name): unpacked(value, len(value["shape"]), "float16") for name, value in content.items()}


LIBRARIES = PublicFiles(
    "layer library", "libraries", Path(__file__).with_name("shipped_libraries"), LayerLibrary.from_bytes
)

NO_LIBRARY = (
    "privacy.library: expected the SHA-256 of a library, because casam ships none for this backbone and "
    "form; `casam run` makes it, `casam scenarios library FILE` makes it for a deployment, or choose "
    "privacy.method dp_sgd and alignment.start identity"
)


def uses_library(scenario: Scenario) -> bool:
    """Whether layers of the scenario start from a library, with noise or without."""
    return scenario.privacy.method == "public_start" or scenario.alignment.start == "library"


def library_named(scenario: Scenario) -> str:
    """The digest of the scenario's library; "" if it uses none.

    Raises ScenarioError if the library is not known yet.
    """
    if not uses_library(scenario):
        return ""
    if scenario.privacy.library is None:
        raise ScenarioError(NO_LIBRARY)
    return scenario.privacy.library


def public_files_of(scenario: Scenario) -> list[tuple[PublicFiles[Any], str]]:
    """The public files that the scenario names: their kind and digest. Raises ScenarioError."""
    named: list[tuple[PublicFiles[Any], str]] = [
        (FRAMES, frame_named(scenario.router)),
        (LIBRARIES, library_named(scenario)),
    ]
    return [(kind, digest) for kind, digest in named if digest]


def travelling_files(scenario: Scenario) -> list[bytes]:
    """The public files of the scenario that casam does not ship, from this machine.

    Raises ScenarioError if a name is missing, BankError if a file is.
    """
    named = public_files_of(scenario)
    return [data for kind, digest in named for data in kind.travelling(digest, kind.here)]
