"""Features are encoded once: a second call reads what the first one wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from casam_bench.quality.phantom_features import phantom_features
from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute


def test_only_new_images_are_encoded_and_the_first_ones_stay_the_same(tmp_path: Path) -> None:
    tiny = load_tiny(BackboneSpec(name="tiny"), Compute(device="cpu", threads=1, precision="float32"))
    said: list[str] = []
    first = phantom_features(tiny, "polyp", 3, tmp_path, said.append)
    more = phantom_features(tiny, "polyp", 5, tmp_path, said.append)
    assert said == ["encode polyp: 3/3", "encode polyp: 5/5"]
    again = phantom_features(tiny, "polyp", 4, tmp_path, said.append)
    assert len(said) == 2
    for kind, width in (("attention", 32), ("moments", 64)):
        assert more[kind].shape == (5, width)
        np.testing.assert_array_equal(more[kind][:3], first[kind])
        np.testing.assert_array_equal(again[kind], more[kind][:4])
