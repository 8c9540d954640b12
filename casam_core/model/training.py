"""The trainer: it trains one Alignment Layer for one round, from cached embeddings.

Open and private training share `train_layer`. They differ in their steps: `OpenSteps` in this module (epochs,
penalty, early stopping) and `PrivateSteps` in casam_core.privacy.dp_training (Poisson sampling, clipping,
noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.forms.base import AlignmentLayer
from casam_core.model.frame import frame_of
from casam_core.model.losses import alignment_loss, official_loss
from casam_core.model.prompts import Prompts, jittered_boxes, random_points, tight_boxes
from casam_core.model.window import Window, whole, windows_around

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Example:
    """One training image.

    seen_CHW: the input of the layer: the frozen embedding z_CHW, or the pixels x_3SS. labels_HW: the
    instances at the image's resolution.
    """

    seen_CHW: Tensor
    labels_HW: NDArray[np.int32]


class Examples(Protocol):
    """Training images by index; a list is enough for a few images.

    Every step reads its images again, so that memory does not grow with their number.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Example: ...


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
    loss: float | None


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
    progress: Progress,
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
    steps = steps or OpenSteps()
    taken, losses = 0, []
    for step in steps(Learner(layer, backbone, examples, spec, learning_rate, rng)):
        progress(step.done, step.total)
        taken += step.taken
        if step.loss is not None:
            losses.append(step.loss)
    layer.eval()
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
    """

    penalty: Callable[[AlignmentLayer, Batch], Tensor] | None = None
    finished_epoch: Callable[[AlignmentLayer], bool] | None = None

    def __call__(self, learner: Learner) -> Iterator[Step]:
        layer, spec, images = learner.layer, learner.spec, len(learner.examples)
        optimiser = torch.optim.Adam(layer.parameters(), lr=learner.learning_rate)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min(1.0, (step + 1) / (spec.warmup + 1))
        )
        total, steps_per_epoch = planned_steps(images, spec), -(-images // spec.batch_images)
        for done, indices in enumerate(batches(images, spec, learner.rng), 1):
            drawn, value = learner.draw(indices), None
            optimiser.zero_grad()
            if drawn:
                batch = decode_batch(layer, learner.backbone, drawn)
                loss = batch.loss(spec)
                if self.penalty is not None:
                    loss = loss + self.penalty(layer, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                warmup.step()
                value = float(loss.detach())
            whole_epoch = done % steps_per_epoch == 0 or done == total
            stop = whole_epoch and bool(self.finished_epoch and self.finished_epoch(layer))
            yield Step(total if stop else done, total, bool(drawn), value)
            if stop:
                return


@dataclass(frozen=True)
class Drawn:
    """Some instances of one image: prompts in pixels of the frame, target_Nhw at the decoder's resolution
    (for the official objective: at the frame's).

    windows: where training decodes each of them.
    """

    seen_CHW: Tensor
    prompts: Prompts
    target_Nhw: Tensor
    windows: Sequence[Window]


@dataclass(frozen=True)
class Batch:
    """The output of layer and decoder for one batch: N instances of all its images together.

    logits, targets: one h x w per instance, in the window of its prompt (casam_core.model.window).
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
        instances = zip(self.logits, self.iou_N, self.targets, strict=True)
        losses = [alignment_loss(lo[None], iou[None], t[None], self.pixels) for lo, iou, t in instances]
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

    None if no instance is visible at the resolution of the targets.
    """
    labels_HW, geometry, official = example.labels_HW, backbone.geometry, spec.objective == "official"
    seen = frame_of(labels_HW, geometry.side if official else geometry.low).resize_labels(labels_HW)
    visible = np.unique(seen)[1:] if (seen == 0).any() else np.unique(seen)
    if len(visible) == 0:
        return None
    if official and len(visible) < spec.instances:
        chosen = np.sort(rng.choice(visible, spec.instances)).astype(np.int32)
    else:
        chosen = np.sort(rng.permutation(visible)[: spec.instances]).astype(np.int32)
    in_image = prompts_for(labels_HW, chosen, kind, spec.box_jitter, rng)
    frame, device = frame_of(labels_HW, geometry.side), backbone.compute.device
    prompts, pooled = in_image.into(frame), spec.far_cells == "means"
    return Drawn(
        seen_CHW=example.seen_CHW.to(device),
        prompts=prompts,
        target_Nhw=torch.from_numpy(seen[None] == chosen[:, None, None]).float().to(device),
        windows=[whole(geometry.cells)] * len(prompts)
        if official
        else windows_around(prompts, geometry.cells, frame.side, pooled=pooled),
    )


def prompts_for(
    labels_HW: NDArray[np.int32],
    chosen: NDArray[np.int32],
    kind: str,
    jitter: float,
    rng: np.random.Generator,
) -> Prompts:
    """One prompt per chosen instance, in pixels of the image."""
    if kind == "point":
        return random_points(labels_HW, chosen, rng)
    return jittered_boxes(labels_HW, chosen, jitter, rng) if jitter else tight_boxes(labels_HW, chosen)


def decode_batch(layer: AlignmentLayer, backbone: Backbone, drawn: Sequence[Drawn]) -> Batch:
    """Apply the layer to all images of the batch at once, then the decoder to one image at a time.

    Masks are decoded near their boxes only: farther away they are empty and teach nothing.
    """
    aligned_BCHW, decoder = align(layer, backbone, drawn), layer.own_decoder()
    logits, iou, targets = [], [], []
    for z_CHW, item in zip(aligned_BCHW, drawn, strict=True):
        near, iou_N = backbone.decode_in(item.windows, z_CHW, item.prompts, decoder)
        logits += near
        iou.append(iou_N)
        scale = item.target_Nhw.shape[-1] // backbone.geometry.cells
        instances = zip(item.windows, item.target_Nhw, strict=True)
        targets += [window.of(target_hw, scale) for window, target_hw in instances]
    return Batch(drawn, logits, torch.cat(iou), targets, pixels=backbone.geometry.low**2)


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
