"""Seeded synthetic modalities, for demos and tests without images of patients.

To add one, write a file with a `paint` function and add a line to PHANTOMS.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from client.data.dataset import LoadedSample
from client.data.phantoms import (
    cardiac_mr,
    dental_xray,
    glomeruli,
    histology,
    polyp,
    prostate_mr,
    spleen_ct,
)


class PaintFunction(Protocol):
    """Paints one image. Equal generators and sizes give equal bits."""

    def __call__(
        self, rng: np.random.Generator, size: int, patient: np.random.Generator | None = None
    ) -> LoadedSample:
        """size: side in pixels, 32 or more. patient: generator of the properties that all images of one
        patient or slide share; if None, every image is a patient of its own."""


PHANTOMS: dict[str, PaintFunction] = {
    "cardiac_mr": cardiac_mr.paint,
    "histology": histology.paint,
    "glomeruli_a": glomeruli.paint_a,
    "glomeruli_b": glomeruli.paint_b,
    "polyp": polyp.paint,
    "prostate_mr_a": prostate_mr.paint_a,
    "prostate_mr_b": prostate_mr.paint_b,
    "spleen_ct": spleen_ct.paint,
    "dental_xray": dental_xray.paint,
}

SLICES_PER_PATIENT: dict[str, int] = {"cardiac_mr": 4, "prostate_mr_a": 4, "prostate_mr_b": 4, "spleen_ct": 4}
"""Number of consecutive images of one patient; 1 for names that are not listed."""
