"""Make the public frame of a backbone from phantom images (casam_core/routing/public_frames.py).

casam ships the frames of the backbones whose weights are the same everywhere. For another backbone, whoever
starts a run makes the frame; its digest is then a part of the scenario, and the frame travels to the sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.config.data_spec import DataSpec
from casam_core.config.public_files import PublicFiles, digest_of_file
from casam_core.config.scenario import Scenario
from casam_core.errors import ScenarioError
from casam_core.files import casam_home
from casam_core.model.backbones import Backbone, load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.embeddings import EmbeddingStore
from casam_core.routing.features import pool
from casam_core.routing.public_frames import FRAMES, PublicFrame
from casam_core.routing.routers import PublicFrameSpec
from casam_core.routing.routers.public_frame import frame_named
from casam_use.frame_fit import make_frame
from client.data.dataset import LoadedSample
from client.data.open import open_dataset
from client.data.phantoms import PHANTOMS

SEED, IMAGES, RECOLOURED = 0, 16, 8
"""Phantoms per modality, and how many of them are also used in other colours, as a modality of their own."""
TINT = np.array([1.0, 0.85, 0.55])
"""Phantoms have few colours, real images many: the channels change places and get these weights."""


def recoloured(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image in other colours."""
    other_HW3: NDArray[np.uint8] = np.clip(image_HW3[..., [1, 2, 0]] * TINT, 0, 255).astype(np.uint8)
    return other_HW3


def phantoms_of(modality: str, images: int) -> list[LoadedSample]:
    """The first public phantoms of a modality."""
    spec = DataSpec(reader="phantom", phantom=modality, images=images)
    dataset = open_dataset(spec, data_root=None, seed=SEED, institution="public")
    return [dataset.load(sample) for sample in dataset.samples]


def frame_for(backbone: Backbone, features: str) -> bytes:
    """The file of the frame for embeddings of this backbone, made from phantoms of every modality."""
    store = EmbeddingStore(casam_home() / "public" / "embeddings")

    def described(images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        embeddings = [store.embed(image_HW3, backbone)[1] for image_HW3 in images]
        return np.stack([pool(z_CHW, features).double().numpy() for z_CHW in embeddings])

    public: dict[str, NDArray[np.float64]] = {}
    for modality in sorted(PHANTOMS):
        images = [loaded.image_HW3 for loaded in phantoms_of(modality, IMAGES)]
        public[modality] = described(images)
        public[f"{modality}, recoloured"] = described([recoloured(image) for image in images[:RECOLOURED]])
    about = {
        "backbone": backbone.digest,
        "compute": backbone.compute.variant,
        "features": features,
        "images": {name: len(f_NF) for name, f_NF in public.items()},
    }
    return make_frame(public, about).to_bytes()


def about_frame(scenario: Scenario) -> dict[str, str]:
    """Facts about the frame of a scenario. Raises ScenarioError for a router without a frame."""
    digest, router = frame_named(scenario.router), scenario.router
    if not digest:
        raise ScenarioError(f"router.kind: expected public_frame, found {router.kind!r}, which has no frame")
    data = FRAMES.data(digest, FRAMES.here)
    frame = PublicFrame.from_bytes(data)
    own = {"axes": f"{frame.axes_FK.shape[1]} in {frame.axes_FK.shape[0]} features ({router.features})"}
    return facts(FRAMES, data, own, scenario, frame.about)


def facts(
    kind: PublicFiles[Any], data: bytes, own: dict[str, str], scenario: Scenario, about: Mapping[str, Any]
) -> dict[str, str]:
    """What the commands print about a public file. own: facts that only this kind has."""
    digest = digest_of_file(data)
    ships = not kind.travelling(digest, kind.here)
    return {
        "digest": digest,
        "file": f"{len(data)} bytes, " + ("ships with casam" if ships else f"in {kind.here}"),
        **own,
        "backbone": f"{scenario.backbone.name} {about.get('backbone', '')}",
        "images": ", ".join(f"{count} {name}" for name, count in about.get("images", {}).items()),
    }


def difference_to_a_new_one(scenario: Scenario) -> float:
    """The relative difference of inner products in the scenario's frame and in one made on this machine.

    Inner products do not depend on signs and order of axes. 0 for equal bits; chips and precisions differ in
    last bits.
    """
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    new = PublicFrame.from_bytes(frame_for(backbone, scenario.router.features))
    old = PublicFrame.from_bytes(FRAMES.data(frame_named(scenario.router), FRAMES.here))
    deviation_F = 1 / np.maximum(np.linalg.norm(old.axes_FK, axis=1), 1e-12)
    one_FF, other_FF = (
        scaled_FK @ scaled_FK.T
        for frame in (old, new)
        for scaled_FK in [frame.axes_FK.astype(np.float64) * deviation_F[:, None]]
    )
    return float(np.linalg.norm(one_FF - other_FF) / np.linalg.norm(one_FF))


def with_frame(scenario: Scenario) -> Scenario:
    """The scenario with the digest of its frame; a frame that is missing is made and kept on this machine.

    Raises CheckpointError if the backbone cannot be loaded.
    """
    router = scenario.router
    if not isinstance(router, PublicFrameSpec) or router.frame is not None:
        return scenario
    backbone = load_backbone(scenario.backbone, resolve_compute(scenario.compute))
    digest = FRAMES.keep(frame_for(backbone, router.features), FRAMES.here)
    return scenario.model_copy(update={"router": router.model_copy(update={"frame": digest})})
