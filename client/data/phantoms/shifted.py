"""How one institution's phantoms differ from others': what its people label, and what its scanner adds.

The objects stay where they are painted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casam_core.config.data_spec import ShiftSpec
from client.data.dataset import LoadedSample


def shifted(sample: LoadedSample, shift: ShiftSpec, rng: np.random.Generator) -> LoadedSample:
    """The sample as an institution with this shift holds it. rng: draws the noise."""
    return LoadedSample(scanned(sample.image_HW3, shift, rng), labelled(sample.labels_HW, shift.objects))


def labelled(labels_HW: NDArray[np.int32], objects: str) -> NDArray[np.int32]:
    """The labels of only half of the objects (one more if their number is odd), as 1..n again.

    objects: `all` keeps every object; `small` and `large` go by area, `round` and `long` by the ratio of the
    standard deviations along the principal axes. Equal objects keep their order.
    """
    if objects == "all":
        return labels_HW
    measured = area if objects in ("small", "large") else elongation
    names = np.unique(labels_HW[labels_HW > 0])
    order = np.argsort([measured(labels_HW == name) for name in names], kind="stable")
    kept = order[: (len(order) + 1) // 2] if objects in ("small", "round") else order[len(order) // 2 :]
    numbers = np.zeros(names[-1] + 1, np.int32)
    numbers[names[np.sort(kept)]] = np.arange(1, len(kept) + 1)
    return numbers[labels_HW]


def area(mask_HW: NDArray[np.bool_]) -> float:
    """Pixels of one object."""
    return float(mask_HW.sum())


def elongation(mask_HW: NDArray[np.bool_]) -> float:
    """1 for a disc, above it for long objects; pixels count as squares, so a line has a finite value."""
    y_N, x_N = np.nonzero(mask_HW)
    moments = np.cov(np.stack([y_N, x_N]), bias=True) + np.eye(2) / 12
    least, most = np.linalg.eigvalsh(moments)
    return float(np.sqrt(most / least))


def scanned(image_HW3: NDArray[np.uint8], shift: ShiftSpec, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image under another scanner: colour, then contrast around middle grey, blur and noise."""
    if (shift.colour, shift.contrast, shift.blur, shift.noise) == (None, 1.0, 0.0, 0.0):
        return image_HW3
    value_HW3 = image_HW3.astype(np.float32) / 255 * np.asarray(shift.colour or (1, 1, 1), np.float32)
    value_HW3 = (value_HW3 - 0.5) * np.float32(shift.contrast) + 0.5
    sigma = shift.blur * image_HW3.shape[0]
    if sigma > 0:
        value_HW3 = ndimage.gaussian_filter(value_HW3, (sigma, sigma, 0), mode="nearest", truncate=3.0)
    value_HW3 += np.float32(shift.noise) * rng.standard_normal(value_HW3.shape, dtype=np.float32)
    return np.clip(value_HW3 * 255 + 0.5, 0, 255).astype(np.uint8)
