"""Where one task's images of one institution come from: the scenario's part that readers obey."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from casam_core.config.section import OneOf, Section


class SplitSpec(Section):
    """Shares of groups that go to validation and test; the rest trains."""

    val: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.25, gt=0, lt=1)
    sequence: bool = Field(False, description="Frames or slices: contiguous ranges, in order.")

    @model_validator(mode="after")
    def _leaves_training_data(self) -> SplitSpec:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test must be below 1 to leave training data, found {self.val + self.test}"
            )
        return self


class LimitSpec(Section):
    """At most this many images of each split (a seeded choice)."""

    train: int | None = Field(None, ge=1)
    val: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


READER_NAMES = ["folder", "phantom", "nifti", "dicom", "coco", "yolo", "tiff_stack", "med_datasets"]
"""The keys of client.data.open.READERS, which scenarios are checked against where no client is installed."""


class DataSpec(Section):
    """Where one task's images of one institution come from."""

    reader: Annotated[str, OneOf(lambda: READER_NAMES)] = "folder"
    path: str | None = Field(None, description="Folder of the dataset (every reader but phantom).")
    labels: Literal["instances", "classes"] = Field(
        "instances", description="classes: every connected part of a class is one instance."
    )
    group_pattern: str | None = Field(
        None, description="Regular expression; its first group in a file name is the patient or slide."
    )
    slice_axis: Literal[0, 1, 2] = Field(2, description="Axis across the slices (reader nifti).")
    window: list[float] | None = Field(
        None,
        description="[centre, width] shown as black to white, e.g. [40, 400] (readers nifti, dicom). "
        "Default: the file's own window, else the volume's percentiles.",
    )
    annotations: str = Field("annotations.json", description="File inside the folder (reader coco).")
    pseudo_masks: bool = Field(
        False, description="Train on the imask files instead of the labels (reader med_datasets)."
    )
    phantom: str | None = Field(None, description="Modality of the generator (reader phantom).")
    images: int = Field(40, ge=3, description="Images to generate (reader phantom).")
    size: int = Field(256, ge=32, le=2048, description="Side in pixels (reader phantom).")
    split: SplitSpec = SplitSpec()
    limit: LimitSpec = LimitSpec()

    @model_validator(mode="after")
    def _reader_has_its_key(self) -> DataSpec:
        needed = "phantom" if self.reader == "phantom" else "path"
        if getattr(self, needed) is None:
            raise ValueError(f"reader {self.reader!r} needs the key {needed!r}")
        return self

    @model_validator(mode="after")
    def _reader_knows_its_options(self) -> DataSpec:
        # An option that its reader ignores would be a wish that nobody hears.
        for key, readers in _OPTIONS.items():
            if self.reader not in readers and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to {' and '.join(readers)}, found reader {self.reader!r}")
        return self

    @model_validator(mode="after")
    def _window_is_centre_and_width(self) -> DataSpec:
        window = self.window
        if window is not None and not (
            len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0
        ):
            raise ValueError(f"window must be [centre, width] with a width above 0, found {window}")
        return self


_OPTIONS = {
    "slice_axis": ("nifti",),
    "window": ("nifti", "dicom"),
    "annotations": ("coco",),
    "pseudo_masks": ("med_datasets",),
    "group_pattern": ("folder", "nifti", "coco", "yolo", "tiff_stack", "med_datasets"),
    "labels": ("folder", "nifti", "dicom", "tiff_stack", "med_datasets"),
}
"""Keys of DataSpec that only some readers know."""
