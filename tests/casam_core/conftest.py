"""What the tests of the method share: the tiny backbone and pictures that are drawn, not read."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from casam_core.config.named_parts import BackboneSpec
from casam_core.model.backbones import Backbone
from casam_core.model.backbones.tiny import load_tiny
from casam_core.model.compute import Compute

CPU = Compute(device="cpu", threads=1, precision="float32")


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """The tiny backbone, loaded once."""
    return load_tiny(BackboneSpec(name="tiny"), CPU)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A 40 x 56 image of noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
