"""Public libraries of layers: starts for tasks with few images, and directions in which layers learn.

A library is one public file (casam_core.config.public_files), made from phantoms (and other public images) by
`casam scenarios library`. It holds, for one backbone and one form:

    shared:      the weights that all its layers have in common and that private training leaves as they are
                 (of low_rank: the matrix that reduces the channels),
    starts:      the other weights of each layer, by name; `identity`, which is frozen SAM, is not stored,
    directions:  K orthonormal directions of these other weights, in which the losses of public images change
                 most,
    clip:        the median length of one public image's gradient along them,
    reach:       the median length of the way from a start to the layer of another public task along them.

Nothing in it depends on an image of an institution.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from casam_core.config.public_files import LARGEST, PublicFiles, packed, unpacked
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError, ScenarioError
from casam_core.model.forms import AlignmentLayer, Weights
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers.public_frame import frame_named

IDENTITY, JOINT = "identity", "joint"
"""The start that is frozen SAM, and the layer of all public tasks together, which every library holds."""
MOST_STARTS, MOST_DIRECTIONS = 256, 64


@dataclass(frozen=True, eq=False)
class LayerLibrary:
    """See the docstring of the module; all arrays are float32 that fit float16.

    directions: by weight, an array with K in front of the weight's shape. about: for people: form, images.
    """

    shared: Weights
    starts: Mapping[str, Weights]
    directions: Weights
    clip: float
    reach: float
    about: Mapping[str, Any]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The starts by name, identity first."""
        return (IDENTITY, *sorted(self.starts))

    @cached_property
    def free(self) -> tuple[str, ...]:
        """Names of the weights that private training changes."""
        return tuple(sorted(self.directions))

    @cached_property
    def flat_directions(self) -> NDArray[np.float64]:
        """The directions as rows of one matrix_KD."""
        parts = [self.directions[name].reshape(len(self.directions[name]), -1) for name in self.free]
        return np.concatenate(parts, axis=1).astype(np.float64)

    def start(self, name: str) -> Weights:
        """The weights of a start."""
        free = {key: np.zeros(rows.shape[1:], np.float32) for key, rows in self.directions.items()}
        return {**self.shared, **(free if name == IDENTITY else self.starts[name])}

    def moved(self, start: Weights, along_K: NDArray[np.float64]) -> Weights:
        """`start`, moved by these lengths along the directions."""
        return {
            name: value + np.tensordot(along_K, self.directions[name], 1).astype(np.float32)
            if name in self.directions
            else value
            for name, value in start.items()
        }

    def gradient_along(self, layer: AlignmentLayer) -> NDArray[np.float64]:
        """g_K: the layer's gradient along the directions."""
        parameters = dict(layer.named_parameters())
        parts = []
        for name in self.free:
            grad = parameters[name].grad
            grad = torch.zeros_like(parameters[name]) if grad is None else grad
            parts.append(grad.detach().cpu().double().numpy().ravel())
        g_K: NDArray[np.float64] = self.flat_directions @ np.concatenate(parts)
        return g_K

    def fits(self, layer: AlignmentLayer) -> bool:
        """Whether the library is for layers of this form, rank and number of channels."""
        own = {name: value.shape for name, value in self.start(IDENTITY).items()}
        return own == {name: tuple(value.shape) for name, value in layer.state_dict().items()}

    def to_bytes(self) -> bytes:
        """The library's file: JSON, as the Flower bundle takes only text."""
        content = {
            "about": dict(self.about),
            "clip": self.clip,
            "reach": self.reach,
            "shared": pack(self.shared),
            "starts": {name: pack(weights) for name, weights in self.starts.items()},
            "directions": pack(self.directions),
        }
        return (json.dumps(content, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> LayerLibrary:
        """Read a library. Raises BankError for bytes that are not one, or numbers that are out of range."""
        try:
            content = json.loads(data)
            library = LayerLibrary(
                shared=unpack(content["shared"]),
                starts={str(name): unpack(content["starts"][name]) for name in content["starts"]},
                directions=unpack(content["directions"]),
                clip=float(content["clip"]),
                reach=float(content["reach"]),
                about=dict(content["about"]),
            )
            library.check()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, binascii.Error) as error:
            raise BankError(f"not the file of a layer library: {type(error).__name__}: {error}") from error
        return library

    def check(self) -> None:
        """Raise ValueError if its parts do not fit each other."""
        free = {name: rows.shape[1:] for name, rows in self.directions.items()}
        counts = {len(rows) for rows in self.directions.values()}
        if len(counts) != 1 or not 0 < min(counts) <= MOST_DIRECTIONS:
            raise ValueError(f"expected 1 to {MOST_DIRECTIONS} directions, found {sorted(counts)}")
        if len(self.starts) > MOST_STARTS or IDENTITY in self.starts or free.keys() & self.shared.keys():
            raise ValueError("expected other names of starts or weights")
        if JOINT not in self.starts:
            raise ValueError(f"expected the start {JOINT!r}")
        for name, weights in self.starts.items():
            if {key: value.shape for key, value in weights.items()} != free:
                raise ValueError(f"the start {name!r} has other weights than the directions")
        if not (0 < self.clip < LARGEST and 0 < self.reach < LARGEST):
            raise ValueError(f"expected a positive clip and reach, found {self.clip} and {self.reach}")


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
    return scenario.privacy.method == "subspace" or scenario.alignment.start == "library"


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
