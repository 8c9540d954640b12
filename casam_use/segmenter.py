"""Segment an image with a finished bank: encode, route, align, decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from casam_core.bank.finding import find
from casam_core.bank.inference import align, decode_masks
from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import ComputeSpec
from casam_core.errors import BankError, PromptError, ScenarioError
from casam_core.model.backbones import BACKBONES, Backbone, load_backbone, released_digests
from casam_core.model.compute import Compute, prepare_process, resolve_compute
from casam_core.model.forms.finder import Finder, finds
from casam_core.routing.decision import IDENTITY, Route
from casam_use.loaded_bank import LoadedBank, LoadedEntry
from casam_use.user_prompts import UserPrompts


class NoFinderError(PromptError):
    """There is no prompt, and the entry cannot do without one."""


@dataclass(frozen=True)
class Prediction:
    """One image's masks, in the order of its boxes, then its points; one mask of one object; without prompts,
    what the finder found, the surest first.

    masks_NHW: bool, in the image's size. iou_N: an estimate of each mask's IoU: the decoder's, plus the
    correction of the entry if it has one. name: the entry that was used, a task or `identity` (frozen SAM).
    route: the router's decision, also if the caller chose the task. threshold: of the route's nearest task;
    None for an empty bank. scores_N: without prompts, the finder's score times the decoder's estimate.
    """

    masks_NHW: NDArray[np.bool_]
    iou_N: NDArray[np.float32]
    name: str
    route: Route
    threshold: float | None
    scores_N: NDArray[np.float32] | None = None

    @property
    def labels(self) -> NDArray[np.int32]:
        """labels_HW: 0 for background, 1..N for the masks.

        Where masks overlap, the later prompt wins; of masks that a finder found, the smaller one, so that an
        instance inside another one stays.
        """
        labels_HW = np.zeros(self.masks_NHW.shape[1:], np.int32)
        paint(labels_HW, dict(enumerate(self.masks_NHW, 1)), smaller_on_top=self.scores_N is not None)
        return labels_HW


def paint(
    labels_HW: NDArray[np.int32], masks: Mapping[int, NDArray[np.bool_]], *, smaller_on_top: bool
) -> None:
    """Write the number of each mask, in HW, into `labels_HW`; without `smaller_on_top`, later ones win."""
    order = sorted(masks, key=lambda number: -masks[number].sum()) if smaller_on_top else masks
    for number in order:
        labels_HW[masks[number]] = number


class Segmenter:
    """A backbone and the bank that was learned on it. Raises BankError if the bank has another backbone."""

    def __init__(self, backbone: Backbone, bank: LoadedBank) -> None:
        if bank.backbone not in (None, backbone.digest):
            raise BankError(
                f"the bank was learned on a backbone of SHA-256 {bank.backbone}, but {backbone.name} has "
                f"{backbone.digest}; load the bank's own backbone"
            )
        self.backbone = backbone
        self.bank = bank

    def embed(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        """z_1CHW float32 of a uint8 RGB image. Raises PromptError for another image."""
        return embedding_of(self.backbone, image_HW3)

    def predict(
        self,
        image_HW3: NDArray[np.uint8],
        boxes: ArrayLike = (),
        *,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        one_object: bool = False,
        task: str | None = None,
        embedding: Tensor | None = None,
    ) -> Prediction:
        """One mask per box and point, or one of all of them; without a prompt, one per instance that the
        entry's finder finds.

        A finder finds nothing in an image that the router does not know.

        Args:
            image_HW3: uint8 RGB image.
            boxes: (N, 4) as x0, y0, x1, y1 of the first and the last pixel.
            points: (N, 2) as x, y in pixels.
            labels: (N,), 1 for a point of the object and 0 for a point that is not; all prompts are then of
                one object.
            mask: (H, W) of an earlier answer, not 0 on the object, which box and points correct; all prompts
                are then of one object.
            one_object: All prompts are of one object, so that there is one mask.
            task: Use this task's entry, or `identity`, instead of the router's choice.
            embedding: z_1CHW of this image from `embed`, which takes most of the time; by default computed
                here.

        Raises:
            PromptError: The prompts or the embedding do not fit the image, the image is not uint8 RGB, or
                there is no prompt and no finder (of the entry: NoFinderError).
            BankError: The bank has no such task.
        """
        require_rgb(image_HW3, "image")
        if embedding is not None:
            require_embedding(embedding, self.backbone)
        asked = UserPrompts(boxes, points, labels, mask, one_object)
        checked = asked.checked(*image_HW3.shape[:2], needed=not has_finders(self.bank))
        prompts = asked.with_mask(checked, self.backbone.geometry.low)
        if task is not None and task != IDENTITY:
            self.bank[task]  # refuses an unknown name before the slow encoder runs
        z_1CHW = self.embed(image_HW3) if embedding is None else embedding
        (route,) = self.bank.route(z_1CHW)
        name = route.name if task is None else task
        entry = None if name == IDENTITY else self.bank[name]
        layer = entry.layer if entry else None
        z_CHW = align(z_1CHW[0], layer, self.backbone.compute)
        frame, scores_N = self.backbone.frame(image_HW3), None
        if prompts:
            turns = (decode_masks(self.backbone, z_CHW, frame, some, layer) for some in prompts)
            parts = [part for turn in turns for part in turn]
            masks_NHW, iou_N = (np.concatenate(part) for part in zip(*parts, strict=True))
        else:
            finder = finder_of(entry) if entry else None
            found = find(self.backbone, finder, layer, z_1CHW[0], z_CHW, frame)
            masks_NHW, iou_N, scores_N = found.masks_NHW, found.iou_N, found.scores_N
        return Prediction(
            masks_NHW=masks_NHW,
            iou_N=corrected(iou_N, entry),
            name=name,
            route=route,
            threshold=None if route.nearest is None else self.bank[route.nearest].entry.threshold,
            scores_N=scores_N,
        )


def require_rgb(image_HW3: NDArray[np.uint8], where: str) -> None:
    """Raises PromptError unless an image is uint8 RGB with at least one pixel."""
    if isinstance(image_HW3, np.ndarray):
        found = f"{image_HW3.dtype} {image_HW3.shape}"
        if image_HW3.dtype == np.uint8 and image_HW3.ndim == 3 and image_HW3.shape[2] == 3 and image_HW3.size:
            return
    else:
        found = type(image_HW3).__name__
    raise PromptError(
        f"{where}: expected uint8 of shape (height, width, 3), found {found}; convert it to RGB first"
    )


def require_embedding(z_1CHW: Tensor, backbone: Backbone) -> None:
    """Raises PromptError unless an embedding has the form of the backbone's."""
    shape = (1, backbone.geometry.channels, *[backbone.geometry.cells] * 2)
    if z_1CHW.shape != shape:
        raise PromptError(
            f"embedding: expected z_1CHW of shape {shape}, found {tuple(z_1CHW.shape)}; give what `embed` "
            "made of this image"
        )


def embedding_of(backbone: Backbone, image_HW3: NDArray[np.uint8]) -> Tensor:
    """z_1CHW float32 of a uint8 RGB image. Raises PromptError for another image.

    Rounded to half precision, as in the embedding store: layers were trained, and thresholds chosen, on
    such values.
    """
    require_rgb(image_HW3, "image")
    return backbone.encode([image_HW3]).cpu().half().float()


def has_finders(bank: LoadedBank) -> bool:
    """Whether an entry of the bank can segment an image without a prompt."""
    return any(finds(loaded.entry.layer) for loaded in bank.values())


def finder_of(entry: LoadedEntry) -> Finder:
    """The entry's finder. Raises NoFinderError if it has none that has learned."""
    if entry.layer.finder is None or not finds(entry.entry.layer):
        raise NoFinderError(
            f"the entry of task {entry.entry.task!r} has no finder (alignment.finder); add a box"
        )
    return entry.layer.finder


def corrected(estimate_N: NDArray[np.float32], entry: LoadedEntry | None) -> NDArray[np.float32]:
    """iou_N: the decoder's estimates plus the entry's correction, within [0, 1]; without one, unchanged."""
    correction = entry.entry.correction if entry else None
    return estimate_N if correction is None else np.clip(estimate_N + np.float32(correction), 0, 1)


def backbone_for(
    bank: LoadedBank,
    name: str | None = None,
    *,
    checkpoint: str | None = None,
    device: str = "auto",
    threads: int = 1,
) -> Backbone:
    """The backbone that the bank was learned on, loaded once per process.

    name: required if the bank's digest is not that of a released model. checkpoint: file of an official SAM
    (vit_*) with the bank's digest. threads: 1 gives the same bits as a run with default settings, more is
    faster. Raises BankError, CheckpointError or ScenarioError.
    """
    known = {digest: model for model, digest in released_digests().items()}
    if name is None:
        if bank.backbone is None:
            raise BankError("an empty bank does not name a backbone; name one with --backbone")
        if bank.backbone not in known:
            raise BankError(
                f"the bank was learned on a backbone of SHA-256 {bank.backbone}, which is not a released "
                "model; name it with --backbone and --checkpoint"
            )
        name = known[bank.backbone]
    if name not in BACKBONES:
        raise ScenarioError(f"backbone: expected one of {', '.join(BACKBONES)}, found {name!r}")
    compute = prepared(device, threads)
    about = {"name": name, "checkpoint": checkpoint, "sha256": bank.backbone if checkpoint else None}
    return load_backbone(BackboneSpec.model_validate(about), compute)


def prepared(device: str, threads: int) -> Compute:
    """Where to compute; this process is set up for it. Raises ScenarioError."""
    try:
        compute = resolve_compute(ComputeSpec(device=device, threads=threads))
    except ValueError as error:
        raise ScenarioError(
            f"expected device auto, cpu, mps or cuda:N and 1 to 256 threads, found {device!r} and {threads}"
        ) from error
    prepare_process(compute)
    return compute
