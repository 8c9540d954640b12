"""A dataset of phantoms: every image is drawn from its own seed when it is loaded.

One institution's phantoms can differ from others' in what its people label and in what its scanner adds. The
objects stay where they are painted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casam_core.config.data_spec import ShiftSpec
from casam_core.errors import DataError
from casam_core.seeding import numpy_generator
from client.data.dataset import LoadedSample, Sample
from client.data.phantoms import PHANTOMS, SLICES_PER_PATIENT


class PhantomDataset:
    """`images` samples of the modality `name`, as one institution would hold them.

    size: side in pixels. seed: the run's seed. shift: how this institution's images differ. Sample i depends
    on (seed, institution, name, i) and the shift only, so asking for more images never changes the first.
    """

    def __init__(
        self, name: str, images: int, size: int, seed: int, institution: str, shift: ShiftSpec | None = None
    ) -> None:
        if name not in PHANTOMS:
            raise DataError(f"unknown phantom {name!r}; choose one of: {', '.join(sorted(PHANTOMS))}")
        if images < 1 or images > 10_000:
            raise DataError(f"phantom {name!r}: expected 1 to 10000 images, found {images}")
        if size < 32:
            raise DataError(f"phantom {name!r}: expected a side of 32 pixels or more, found {size}")
        self._name, self._size, self._seed, self._institution = name, size, seed, institution
        self._shift = shift or ShiftSpec()
        self._slices = SLICES_PER_PATIENT.get(name, 1)
        self._samples = tuple(
            Sample(id=f"{i:04d}", group=f"{name}-{i // self._slices:04d}") for i in range(images)
        )

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, sorted by id. Slices of one patient share a group."""
        return self._samples

    def load(self, sample: Sample) -> LoadedSample:
        """Draw one sample. Raises DataError for a sample of another dataset."""
        index = int(sample.id) if sample.id.isdecimal() else -1
        if not 0 <= index < len(self._samples) or self._samples[index] != sample:
            raise DataError(
                f"phantom {self._name!r}: expected a sample of 0000 to {self._samples[-1].id}, found {sample}"
            )
        scope = (self._institution, "phantom", self._name)
        rng = numpy_generator(self._seed, *scope, index)
        patient = numpy_generator(self._seed, *scope, "patient", index // self._slices)
        painted = PHANTOMS[self._name](rng, self._size, patient)
        return shifted(painted, self._shift, numpy_generator(self._seed, *scope, "scanner", index))


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
