"""Few-shot curves come from the product's own loop."""

from __future__ import annotations

import numpy as np
import torch

from casam_bench.quality.few_shot import learn
from casam_core.config.named_parts import AlignmentSpec, BackboneSpec
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute
from casam_core.model.examples import Example
from casam_core.model.forms import AlignmentLayer
from casam_core.model.validation import Validated


def test_a_curve_is_measured_on_the_way_and_counts_the_bytes() -> None:
    tiny = load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))
    labels = np.zeros((64, 64), np.int32)
    labels[10:40, 10:40] = 1
    known = [
        Example(torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(i)), labels) for i in range(2)
    ]
    seen: list[float] = []

    def validate(layer: AlignmentLayer) -> Validated:
        seen.append(float(sum(p.detach().abs().sum() for p in layer.parameters())))
        return Validated(np.array([len(seen) / 10]), np.zeros(1))

    curve = learn(AlignmentSpec(form="scale_shift"), tiny, known, validate, steps=(1, 4))
    assert curve.iou == {1: 0.1, 4: 0.2}
    assert seen[0] != seen[1]
    assert curve.bytes == 2 * 32 * 4
    assert curve.seconds > 0
