"""How fast this machine is, right now: seconds to start a run, of one encode, training step and decode.

Measured in moments on a synthetic image, so that a plan of hours can be told in minutes before it starts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from casam_core.bank.inference import decode_masks
from casam_core.config.scenario import Scenario
from casam_core.metrics.segmentation import score_instance
from casam_core.model.backbones import load_backbone
from casam_core.model.compute import resolve_compute
from casam_core.model.examples import Example
from casam_core.model.forms import LowRankSpec, build_layer
from casam_core.model.prompts import tight_boxes
from casam_core.model.training import train_layer
from client.data.phantoms import PHANTOMS
from scenarios.engines.preflight import Cost


@dataclass(frozen=True)
class Pace:
    """Seconds of a process's start, and seconds per image for encoding, a training step, and decoding with
    scoring."""

    start: float
    encode: float
    train: float
    decode: float

    def seconds(self, cost: Cost) -> float:
        """Seconds that one process needs for `cost`."""
        steps = cost.steps * cost.batch * self.train
        return self.start + cost.encodes * self.encode + steps + cost.decodes * self.decode


def measure_pace(scenario: Scenario) -> Pace:
    """Measure on one image with many instances, with the scenario's backbone and numbers of instances.

    Uses the default layer, because the decoder takes most of the time with every form except `lora`.
    """
    compute = resolve_compute(scenario.compute)
    backbone = load_backbone(scenario.backbone, compute)
    painted = PHANTOMS["histology"](np.random.default_rng(0), 256)
    labels_HW = painted.labels_HW
    instances = np.unique(labels_HW[labels_HW > 0]).astype(np.int32)[: scenario.evaluation.max_instances]
    layer = build_layer(LowRankSpec(), backbone.geometry.channels, 0, backbone)
    steps = scenario.training.model_copy(update={"epochs": 2, "max_steps": 2, "batch_images": 1})

    def train() -> None:
        example = Example(z_CHW, labels_HW)
        rng = np.random.default_rng(0)
        train_layer(layer, backbone, [example], steps, learning_rate=1e-4, rng=rng)

    def decode() -> None:
        frame = backbone.frame(painted.image_HW3)
        for masks_nHW, _ in decode_masks(backbone, z_CHW, frame, tight_boxes(labels_HW, instances)):
            for mask_HW in masks_nHW:
                score_instance(mask_HW, labels_HW > 0, with_hd95=scenario.evaluation.hd95)

    threads = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    try:
        z_CHW = backbone.encode([painted.image_HW3])[0].float()
        return Pace(
            start=seconds_of(start_process),
            encode=seconds_of(lambda: backbone.encode([painted.image_HW3])),
            train=seconds_of(train) / 2,
            decode=seconds_of(decode),
        )
    finally:
        torch.set_num_threads(threads)


def start_process() -> None:
    """Start a process with the imports of a run, and wait for its end."""
    subprocess.run([sys.executable, "-c", "import scenarios.study.cell"], check=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
