"""Where the images of one task at one institution come from: in a scenario, and in a site file."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from casam_core.config.section import OneOf, Section


class SplitSpec(Section):
    """The share of groups used for validation and for test; training uses the rest.

    Every group is drawn by itself, so a small dataset meets the shares only roughly.
    """

    val: float = Field(0.15, gt=0, lt=1, description="Share of groups for validation.")
    test: float = Field(0.25, gt=0, lt=1, description="Share of groups for test.")
    use: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of groups that are used at all. It draws each group by itself, unlike `limit`, so "
        "a policy that adds noise allows it.",
    )
    sequence: bool = Field(
        False,
        description="For frames or slices: keep their order and cut it into three contiguous ranges. A "
        "policy that adds noise does not allow it.",
    )

    @model_validator(mode="after")
    def _leaves_training_data(self) -> SplitSpec:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test must be below 1 to leave training data, found {self.val + self.test}"
            )
        return self


class LimitSpec(Section):
    """The most images in each split, drawn at random. A policy that adds noise needs `split.use` instead."""

    train: int | None = Field(None, ge=1, description="Most training images.")
    val: int | None = Field(None, ge=1, description="Most validation images.")
    test: int | None = Field(None, ge=1, description="Most test images.")


class ShiftSpec(Section):
    """How the phantoms of one institution differ from those of others, to simulate heterogeneous sites."""

    objects: Literal["all", "small", "large", "round", "long"] = Field(
        "all",
        description="Label skew. small (large, round, long): only the smaller (larger, rounder, longer) half "
        "of the objects in each image has labels.",
    )
    contrast: float = Field(1.0, gt=0, le=4, description="Factor of the contrast around middle grey.")
    blur: float = Field(0.0, ge=0, le=0.1, description="Blur (sigma) as a share of the image's side.")
    noise: float = Field(0.0, ge=0, le=1, description="Noise (sigma) as a share of the range of intensities.")
    colour: list[float] | None = Field(
        None, min_length=3, max_length=3, description="[red, green, blue]: factors of the channels."
    )


def overlap(one: str, other: str) -> bool:
    """Whether two locations can hold the same images: they are equal, or one lies below the other."""
    a, b = PurePath(one).parts, PurePath(other).parts
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


READER_NAMES = ["folder", "phantom", "nifti", "itk", "dicom", "coco", "yolo", "tiff_stack", "med_datasets"]
"""The keys of client.data.open.READERS, repeated here because this package cannot import `client`."""


class DataSpec(Section):
    """Where the images of one task at one institution come from; in deployments, the site's file says it.
    There, the table may be empty (casam_core/config/site_file.py)."""

    reader: Annotated[str, OneOf(lambda: READER_NAMES)] = Field(
        "folder", description="A name in casam_core.config.data_spec.READER_NAMES."
    )
    path: str | None = Field(None, description="Folder of the dataset (all readers except phantom).")
    image_files: str | None = Field(
        None,
        description="Pattern of the images inside the folder, such as `{patient}/{id}.*`; docs/data.md lists "
        "the marks. Default: images/ and masks/ with the same names.",
    )
    mask_files: str | None = Field(
        None, description="Pattern of the masks, such as `{patient}/{id}_mask.*`; it needs image_files."
    )
    list_file: str | None = Field(
        None,
        description="File inside the folder that lists images and masks: a CSV file with the columns image "
        "and mask (and split and patient, if known), or MONAI's JSON with training, validation and test.",
    )
    split_lists: str | None = Field(
        None,
        description="Sub-folder with train.txt, val.txt and test.txt, which have one `{id}` per line, as in "
        "Pascal VOC; it needs image_files. casam does not read images that no list names.",
    )
    labels: Literal["instances", "classes", "colours"] = Field(
        "instances",
        description="instances: each mask value is one instance. classes: each connected component of a "
        "class is one. colours: the same for RGB masks, one colour per class, black background (folder).",
    )
    object_values: list[int] | None = Field(
        None,
        description="[lowest, highest] mask value of an object, e.g. [1, 254]; every other value is "
        "background (reader folder).",
    )
    group_pattern: str | None = Field(
        None, description="Regular expression for file names; its first group names the patient or slide."
    )
    slice_axis: Literal[0, 1, 2] = Field(2, description="Axis across the slices (readers nifti, itk).")
    window: list[float] | None = Field(
        None,
        description="[centre, width] of the intensities shown from black to white, e.g. [40, 400] (readers "
        "nifti, itk, dicom). Default: the window in the file, or else percentiles of the volume.",
    )
    structures: list[str] | None = Field(
        None,
        description="Names of the structures to read from DICOM SEG and RTSTRUCT (reader dicom). Default: "
        "all but the outline of the body.",
    )
    channel: int = Field(0, ge=0, description="Channel of a stack that has several (reader tiff_stack).")
    annotations: str = Field("annotations.json", description="Label file in the folder (reader coco).")
    pseudo_masks: bool = Field(False, description="Train on imask files, not labels (reader med_datasets).")
    phantom: str | None = Field(None, description="Modality to generate, such as polyp (reader phantom).")
    images: int = Field(40, ge=3, description="Images to generate (reader phantom).")
    size: int = Field(256, ge=32, le=2048, description="Side of an image in pixels (reader phantom).")
    shift: ShiftSpec = Field(
        ShiftSpec(),
        exclude_if=lambda shift: shift == ShiftSpec(),  # scenarios without one keep their digest
        description="How labels and pixels differ from those of other sites (reader phantom).",
    )
    split: SplitSpec = SplitSpec()
    limit: LimitSpec = LimitSpec()

    @model_validator(mode="after")
    def _reader_has_its_key(self) -> DataSpec:
        needed = "phantom" if self.reader == "phantom" else "path"
        if getattr(self, needed) is None and self.model_dump(exclude_defaults=True):
            raise ValueError(f"reader {self.reader!r} needs the key {needed!r}")
        return self

    @property
    def place(self) -> str:
        """Where the images are, as the table writes it."""
        if self.path is None:
            return f"phantom/{self.phantom}"
        try:
            return os.path.normpath(Path(self.path).expanduser())
        except RuntimeError:  # an unknown home folder, which the reader of the data tells
            return os.path.normpath(Path(self.path))

    @property
    def undescribed(self) -> bool:
        """Whether the table names a task without saying where its images are."""
        return self.path is None and self.phantom is None

    @model_validator(mode="after")
    def _reader_knows_its_options(self) -> DataSpec:
        # If a reader ignored an option silently, the user would believe that it works.
        for key, readers in OPTIONS.items():
            if self.reader not in readers and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to {' and '.join(readers)}, found reader {self.reader!r}")
        return self

    @model_validator(mode="after")
    def _patterns_come_in_pairs(self) -> DataSpec:
        if (self.image_files is None) != (self.mask_files is None):
            raise ValueError("expected image_files and mask_files together, found one of them")
        if self.list_file is not None and self.image_files is not None:
            raise ValueError("expected list_file or patterns of files, found both; leave one out")
        if self.split_lists is not None and "{id}" not in (self.image_files or ""):
            raise ValueError("expected image_files with {id} beside split_lists, found none; add it")
        if self.labels == "colours" and self.reader != "folder":
            raise ValueError(f"labels = 'colours' belongs to folder, found reader {self.reader!r}")
        return self

    @property
    def patterns(self) -> tuple[str, str] | None:
        """The patterns of images and masks; None for images/ and masks/ with the same names."""
        return (self.image_files, self.mask_files) if self.image_files and self.mask_files else None

    @model_validator(mode="after")
    def _object_values_are_a_range(self) -> DataSpec:
        values = self.object_values
        if values is not None and not (len(values) == 2 and 1 <= values[0] <= values[1]):
            raise ValueError(f"object_values must be [lowest, highest] from 1 on, found {values}")
        if values is not None and self.labels == "colours":
            raise ValueError("expected object_values or labels = 'colours', found both; leave one out")
        return self

    @model_validator(mode="after")
    def _window_is_centre_and_width(self) -> DataSpec:
        window = self.window
        if window is not None and not (
            len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0
        ):
            raise ValueError(f"window must be [centre, width] with a width above 0, found {window}")
        return self


OPTIONS = {
    "image_files": ("folder", "nifti", "itk", "tiff_stack", "yolo"),
    "mask_files": ("folder", "nifti", "itk", "tiff_stack", "yolo"),
    "list_file": ("folder", "nifti", "itk", "tiff_stack"),
    "split_lists": ("folder", "nifti", "itk", "tiff_stack"),
    "object_values": ("folder",),
    "slice_axis": ("nifti", "itk"),
    "window": ("nifti", "itk", "dicom"),
    "structures": ("dicom",),
    "channel": ("tiff_stack",),
    "shift": ("phantom",),
    "annotations": ("coco",),
    "pseudo_masks": ("med_datasets",),
    "group_pattern": ("folder", "nifti", "itk", "coco", "yolo", "tiff_stack", "med_datasets"),
    "labels": ("folder", "nifti", "itk", "dicom", "tiff_stack", "med_datasets"),
}
"""The keys of DataSpec that only some readers support."""
