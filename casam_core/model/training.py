"""The trainer: it trains one Alignment Layer for one round, from cached embeddings.

Open and private training share `train_layer`. They differ in their steps: `OpenSteps` in this module (epochs,
penalty, early stopping) and `PrivateSteps` in casam_core.privacy.layer_steps (Poisson sampling, clipping,
noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.window import Window, whole, windows_around
from casam_core.model.examples import Example, Examples, held
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.forms.finder import FALLING, PREFIX, finder_loss
from casam_core.model.forms.finder import LEARNING_RATE as FINDER_LEARNING_RATE
from casam_core.model.frame import Frame, frame_of, resampled
from casam_core.model.losses import alignment_loss, alignment_loss_together, dice_loss, official_loss
from casam_core.model.prompts import (
    Places,
    Prompts,
    boxes_at,
    jittered_boxes,
    random_points,
    tight_boxes,
)

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

DECODED = "images decoded together in training"
"""The name of a step's work that does not fit into the device's memory (casam_core.model.compute.Halved)."""


@dataclass(frozen=True)
class TrainingResult:
    """steps: optimiser steps taken. losses: one mean loss per step; empty for a private round."""

    steps: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Learner:
    """The input of all kinds of steps. rng: draws the order of the images, instances and prompts; private
    steps have draws of their own (casam_core.privacy.dp_training)."""

    layer: AlignmentLayer
    backbone: Backbone
    examples: Examples
    spec: TrainingSpec
    learning_rate: float
    rng: np.random.Generator

    def draw(self, indices: NDArray[np.int64]) -> list[Drawn]:
        """Draw some instances of every image of a batch (see `draw_batch`)."""
        return draw_batch(indices, self.examples, self.backbone, self.spec, self.rng)


class Step(NamedTuple):
    """The report of one finished step.

    taken: whether the optimiser changed the layer; it does not if no instance is visible. loss: of the
    batch; None if there is none, or in private training.
    """

    done: int
    total: int
    taken: bool
    loss: Tensor | None


def planned_steps(images: int, spec: TrainingSpec) -> int:
    """Optimiser steps of one round over this many images."""
    steps = spec.passes(images) * -(-images // spec.batch_images)
    return steps if spec.max_steps is None else min(steps, spec.max_steps)


def batches(images: int, spec: TrainingSpec, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Index batches of one round: every epoch sees every image once, in a new order."""
    left = planned_steps(images, spec)
    while left > 0:
        order = rng.permutation(images)
        for start in range(0, images, spec.batch_images):
            if left == 0:
                return
            yield order[start : start + spec.batch_images]
            left -= 1


class Steps(Protocol):
    """A kind of training step."""

    def __call__(self, learner: Learner) -> Iterator[Step]:
        """Train `learner.layer` in place and report each step."""


def train_layer(
    layer: AlignmentLayer,
    backbone: Backbone,
    examples: Examples,
    spec: TrainingSpec,
    *,
    learning_rate: float,
    rng: np.random.Generator,
    progress: Progress = lambda done, total: None,
    steps: Steps | None = None,
) -> TrainingResult:
    """Train `layer` in place for one round.

    Args:
        layer: afterwards it is on the backbone's device and in evaluation mode.
        rng: draws everything except the noise and the samples of a private round.
        progress: called after every step.
        steps: by default OpenSteps without penalty and early stopping.

    Raises:
        RunError: a loss or a weight is no longer finite.
    """
    layer.to(backbone.compute.device).train()
    steps, examples = steps or OpenSteps(), held(examples, backbone, side_of(backbone, spec))
    taken, values = 0, []
    for step in steps(Learner(layer, backbone, examples, spec, learning_rate, rng)):
        progress(step.done, step.total)
        taken += step.taken
        if step.loss is not None:
            values.append(step.loss)
    layer.eval()
    losses = torch.stack(values).tolist() if values else []
    if not all(map(math.isfinite, losses)) or not all(p.isfinite().all() for p in layer.parameters()):
        raise RunError(
            f"training diverged within {taken} steps at learning rate {learning_rate:g}; "
            "set a lower alignment.learning_rate"
        )
    return TrainingResult(taken, tuple(losses))


@dataclass(frozen=True)
class OpenSteps:
    """Adam on batches that pass over all images (CA-SAM, training).

    Args:
        penalty: added to the loss of every batch (casam_core.methods).
        finished_epoch: called after every epoch, and after the last step of a round; True ends
            the round (casam_core.model.validation).
        corrected: called between a step's gradient and the optimiser.
    """

    penalty: Callable[[AlignmentLayer, Batch], Tensor] | None = None
    finished_epoch: Callable[[AlignmentLayer], bool] | None = None
    corrected: Callable[[AlignmentLayer], None] | None = None

    def __call__(self, learner: Learner) -> Iterator[Step]:
        layer, spec, images = learner.layer, learner.spec, len(learner.examples)
        fused = True if learner.backbone.compute.device.startswith("cuda") else None
        optimiser = torch.optim.Adam(groups_of(layer), lr=learner.learning_rate, fused=fused)
        total, steps_per_epoch = planned_steps(images, spec), -(-images // spec.batch_images)
        rates = rates_of(optimiser, spec.warmup, total)
        for done, indices in enumerate(batches(images, spec, learner.rng), 1):
            drawn, value = learner.draw(indices), None
            optimiser.zero_grad()
            if drawn:
                value = self.gradient(learner, drawn)
                add_finder_gradient(layer, learner.backbone, drawn)
                if self.corrected is not None:
                    self.corrected(layer)
                optimiser.step()
                rates.step()
            whole_epoch = done % steps_per_epoch == 0 or done == total
            stop = whole_epoch and bool(self.finished_epoch and self.finished_epoch(layer))
            yield Step(total if stop else done, total, bool(drawn), value)
            if stop:
                return

    def gradient(self, learner: Learner, drawn: Sequence[Drawn]) -> Tensor:
        """The loss of a batch, whose gradient is in the layer afterwards.

        If memory is short, it is computed again, with the decoder in two halves (see `decode_batch`). Raises
        RunError if that is too much, too.
        """

        def computed() -> Tensor:
            batch = decode_batch(learner.layer, learner.backbone, drawn)
            loss = batch.loss(learner.spec)
            if self.penalty is not None:
                loss = loss + self.penalty(learner.layer, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        return learner.backbone.halved.attempt(DECODED, len(drawn), computed, undo=learner.layer.zero_grad)


def groups_of(layer: AlignmentLayer) -> list[dict[str, Any]]:
    """The layer's parameters, as an optimiser takes them; a finder has a learning rate of its own."""
    own = [value for name, value in layer.named_parameters() if not name.startswith(PREFIX)]
    groups: list[dict[str, Any]] = [{"params": own}]
    if layer.finder is not None:
        groups.append({"params": list(layer.finder.parameters()), "lr": FINDER_LEARNING_RATE})
    return groups


def rates_of(optimiser: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The rates of `groups_of` in a round of `total` steps.

    All rise over the first `warmup` steps; a finder's falls to zero over the last ones.
    """

    def rising(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1))

    def falling(step: int) -> float:
        return min(rising(step), (total - step) / (FALLING * total))

    factors: list[Callable[[int], float]] = [rising, falling]
    return torch.optim.lr_scheduler.LambdaLR(optimiser, factors[: len(optimiser.param_groups)])


def add_finder_gradient(layer: AlignmentLayer, backbone: Backbone, drawn: Sequence[Drawn]) -> None:
    """Add the gradient of the finder's loss on a batch, if the layer has a finder that learns.

    It is the mean over images. The layer's own parameters get no gradient from it.
    """
    if layer.finder is None or not layer.finder.out.weight.requires_grad:
        return
    stride = backbone.geometry.side / backbone.geometry.cells
    out_BNHW = layer.finder(torch.stack([item.seen_CHW for item in drawn]))
    pairs = zip(out_BNHW, drawn, strict=True)
    losses = [finder_loss(out, item.all_boxes, stride) for out, item in pairs]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Drawn:
    """Some instances of one image: prompts in pixels of the frame, target_Nhw at the decoder's resolution
    (for the official objective: at the frame's).

    windows: where training decodes each of them. places: of all instances of the image, in `frame`'s image.
    """

    seen_CHW: Tensor
    prompts: Prompts
    target_Nhw: Tensor
    windows: Sequence[Window]
    places: Places
    frame: Frame

    @property
    def all_boxes(self) -> NDArray[np.float32]:
        """boxes_M4 of all instances, in pixels of the frame: what a finder learns."""
        return boxes_at(self.places).into(self.frame).xy


@dataclass(frozen=True)
class Batch:
    """The output of layer and decoder for one batch: N instances of all its images together.

    logits, targets: one h x w per instance, in the window of its prompt (casam_core.model.backbones.window).
    pixels: of a whole mask.
    """

    drawn: Sequence[Drawn]
    logits: Sequence[Tensor]
    iou_N: Tensor
    targets: Sequence[Tensor]
    pixels: int

    def loss(self, spec: TrainingSpec) -> Tensor:
        """The loss of the spec's objective; casam's is averaged over the instances of the batch."""
        if spec.objective == "official":
            return official_loss(torch.stack(list(self.logits)), self.iou_N, torch.stack(list(self.targets)))
        if self.iou_N.device.type != "cpu":
            return alignment_loss_together(self.logits, self.iou_N, self.targets, self.pixels)
        instances = zip(self.logits, self.iou_N, self.targets, strict=True)
        losses = [alignment_loss(lo[None], iou[None], t[None], self.pixels) for lo, iou, t in instances]
        return torch.stack(losses).mean()

    def overlap_loss(self) -> Tensor:
        """The mean Dice loss of the instances, at the size of the targets: what private steps descend."""
        pairs = zip(self.logits, self.targets, strict=True)
        losses = [dice_loss(resampled(lo[None], (t.shape[0], t.shape[1])), t[None]) for lo, t in pairs]
        return torch.stack(losses).mean()


def draw_batch(
    indices: NDArray[np.int64],
    examples: Examples,
    backbone: Backbone,
    spec: TrainingSpec,
    rng: np.random.Generator,
) -> list[Drawn]:
    """Draw some instances of every image of a batch; all get the same kind of prompt.

    Images without visible instances are left out.
    """
    kind = kind_of_prompt(spec, rng)
    drawn = [draw_instances(examples[int(i)], backbone, spec, kind, rng) for i in indices]
    return [item for item in drawn if item is not None]


def kind_of_prompt(spec: TrainingSpec, rng: np.random.Generator) -> str:
    """The kind of prompt of one step."""
    return spec.prompts if spec.prompts != "mixed" else ("box", "point")[rng.integers(2)]


def draw_instances(
    example: Example, backbone: Backbone, spec: TrainingSpec, kind: str, rng: np.random.Generator
) -> Drawn | None:
    """Draw up to `spec.instances` instances of one image, with prompts and targets.

    kind: "box" or "point". None if no instance is visible at the resolution of the targets.
    """
    labels_HW, geometry, official = example.labels_HW, backbone.geometry, spec.objective == "official"
    shown, moved = example.shown(side_of(backbone, spec)), backbone.compute.moved
    visible = shown.visible_N
    if len(visible) == 0:
        return None
    if official and len(visible) < spec.instances:
        chosen = np.sort(rng.choice(visible, spec.instances)).astype(np.int32)
    else:
        chosen = np.sort(rng.permutation(visible)[: spec.instances]).astype(np.int32)
    in_image = prompts_for(example, chosen, shown.places, kind, spec.box_jitter, rng)
    frame, chosen_N11 = frame_of(labels_HW, geometry.side), torch.from_numpy(chosen)[:, None, None]
    prompts, pooled = in_image.into(frame), spec.far_cells == "means"
    return Drawn(
        seen_CHW=moved(example.seen_CHW).float(),
        prompts=prompts,
        target_Nhw=(moved(shown.labels_SS) == moved(chosen_N11)).float(),
        windows=[whole(geometry.cells)] * len(prompts)
        if official
        else windows_around(prompts, geometry.cells, frame.side, pooled=pooled),
        places=shown.places,
        frame=frame,
    )


def side_of(backbone: Backbone, spec: TrainingSpec) -> int:
    """Side of the frame of the targets: the backbone's for the official objective, else the decoder's."""
    return backbone.geometry.side if spec.objective == "official" else backbone.geometry.low


def prompts_for(
    example: Example,
    chosen: NDArray[np.int32],
    places: Places,
    kind: str,
    jitter: float,
    rng: np.random.Generator,
) -> Prompts:
    """One prompt per chosen instance, in pixels of the image.

    kind: "box" or "point". jitter: of the corners, as a share of the sides of the box.
    """
    if kind == "point":
        return random_points(example.labels_HW, chosen, rng, places)
    if jitter:
        return jittered_boxes(example.labels_HW, chosen, jitter, rng, places)
    return tight_boxes(example.labels_HW, chosen, places)


def decode_batch(layer: AlignmentLayer, backbone: Backbone, drawn: Sequence[Drawn]) -> Batch:
    """Apply the layer to all images of the batch at once, then the decoder.

    Masks are decoded near their boxes only: farther away they are empty and teach nothing. If the device's
    memory was too small for a batch before, the decoder gets two halves of the images, and what it computes
    for them is computed again for the gradient in place of being kept. Loss and gradient are the same.
    """
    aligned_BCHW, images = align(layer, backbone, drawn), len(drawn)
    decoder = layer.decoder(backbone.mask_decoder)

    def decoded(some: slice) -> tuple[list[Tensor], Tensor]:
        windows, prompts = [item.windows for item in drawn[some]], [item.prompts for item in drawn[some]]
        return backbone.decode_images(windows, aligned_BCHW[some], prompts, decoder)

    if DECODED in backbone.halved.names:
        half = -(-images // 2)
        parts = [
            checkpoint(decoded, some, use_reentrant=False, preserve_rng_state=False)
            for some in (slice(half), slice(half, images))
            if drawn[some]
        ]
    else:
        parts = [decoded(slice(images))]
    targets = []
    for item in drawn:
        scale = item.target_Nhw.shape[-1] // backbone.geometry.cells
        instances = zip(item.windows, item.target_Nhw, strict=True)
        targets += [window.of(target_hw, scale) for window, target_hw in instances]
    logits, iou_N = [near for some, _ in parts for near in some], torch.cat([iou for _, iou in parts])
    return Batch(drawn, logits, iou_N, targets, pixels=backbone.geometry.low**2)


def align(layer: AlignmentLayer, backbone: Backbone, drawn: Sequence[Drawn]) -> Tensor:
    """aligned_BCHW float32: what the layer makes of the images."""
    with backbone.compute.autocast():
        aligned_BCHW: Tensor = layer(torch.stack([item.seen_CHW for item in drawn])).float()
    return aligned_BCHW


def importance_of(
    layer: AlignmentLayer,
    backbone: Backbone,
    examples: Examples,
    spec: TrainingSpec,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float32]]:
    """Diagonal Fisher information: by parameter, the mean of the squared gradients of the images.

    It takes one image at a time, so that gradients of different images do not cancel before the square.
    """
    total = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    for i in range(len(examples)):
        drawn = draw_batch(np.array([i]), examples, backbone, spec, rng)
        layer.zero_grad()
        if drawn:
            decode_batch(layer, backbone, drawn).loss(spec).backward()  # type: ignore[no-untyped-call]
            for name, value in layer.named_parameters():
                if value.grad is not None:
                    total[name] += value.grad.square()
    layer.zero_grad()
    return {name: (value / len(examples)).cpu().numpy() for name, value in total.items()}
