"""A dataset of phantoms: every image is drawn from its own seed when it is loaded."""

from __future__ import annotations

from casam_core.config.data_spec import ShiftSpec
from casam_core.errors import DataError
from casam_core.seeding import numpy_generator
from client.data.dataset import LoadedSample, Sample
from client.data.phantoms import PHANTOMS, SLICES_PER_PATIENT
from client.data.phantoms.shifted import shifted


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
