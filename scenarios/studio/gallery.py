"""The pictures that an institution drew of its own images (client/evaluation/overlays.py), one panel at a
time.

They are images of patients: they are read from the institution's own folder and shown to the person at this
machine.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from casam_core.errors import RunInputError
from scenarios.studio.shelf import Item, NotFoundError, Shelf, folders_in

LIST = "pictures.json"
"""The institution's list of its pictures, beside them."""

ORDERS = {
    "gain": "largest gain first",
    "loss": "largest loss first",
    "route": "by route",
    "task": "by task",
}


@dataclass(frozen=True)
class Shown:
    """One picture. at: the file's name in addresses."""

    at: str
    task: str
    sample: str
    route: str
    iou: float
    frozen_iou: float

    @property
    def gain(self) -> float:
        """IoU of the bank minus IoU of frozen SAM."""
        return self.iou - self.frozen_iou


@dataclass(frozen=True)
class Gallery(Item):
    """One institution's folder of pictures."""

    institution: str
    stage: int
    most: int
    panels: tuple[str, ...]
    gap: int
    pictures: tuple[Shown, ...]

    def sorted(self, order: str) -> list[Shown]:
        """The pictures in one of ORDERS; an unknown order counts as `gain`."""
        return sorted(self.pictures, key=KEYS.get(order, KEYS["gain"]))


KEYS: dict[str, Callable[[Shown], tuple[str, float]]] = {
    "gain": lambda shown: ("", -shown.gain),
    "loss": lambda shown: ("", shown.gain),
    "route": lambda shown: (shown.route, -shown.gain),
    "task": lambda shown: (shown.task, -shown.gain),
}


def galleries(shelf: Shelf, runs: Sequence[Item]) -> list[Gallery]:
    """Every folder of pictures: below the institutions of runs, and in sites' own folders."""
    found: list[Gallery] = []
    for run in runs:
        for path in sorted(run.path.glob(f"institutions/*/private/overlays/{LIST}")):
            found += gallery(shelf, f"{run.at}/{path.parent.relative_to(run.path).as_posix()}")
    for number, root in enumerate(shelf.roots):
        for folder in folders_in(root):
            if (folder / LIST).is_file():
                found += gallery(shelf, shelf.name(number, folder))
    return found


def gallery(shelf: Shelf, at: str) -> list[Gallery]:
    """The gallery in this folder; empty if its list cannot be read."""
    folder = shelf.find(at)
    try:
        facts = json.loads((folder / LIST).read_text(encoding="utf-8"))
        pictures = tuple(
            Shown(
                f"{at}/{Path(one['file']).name}",
                str(one["task"]),
                str(one["sample"]),
                str(one["route"]),
                float(one["iou"]),
                float(one["frozen_iou"]),
            )
            for one in facts["pictures"]
        )
        about = str(facts["institution"]), int(facts["stage"]), int(facts["most"])
        return [Gallery(at, folder, *about, tuple(map(str, facts["panels"])), int(facts["gap"]), pictures)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def panel(shelf: Shelf, at: str, number: int) -> bytes:
    """PNG of one panel of a picture. Raises CasamError if it is no picture of an institution."""
    path, found = shelf.find(at), gallery(shelf, at.rpartition("/")[0])
    if (
        not found
        or at not in [shown.at for shown in found[0].pictures]
        or not 0 <= number < len(found[0].panels)
    ):
        raise NotFoundError(f"expected a picture of an institution, found none at {at[:200]!r}")
    panels, gap = len(found[0].panels), found[0].gap
    try:
        with Image.open(path) as picture:
            width = (picture.width - gap * (panels - 1)) // panels
            left = number * (width + gap)
            buffer = io.BytesIO()
            picture.crop((left, 0, left + width, picture.height)).save(buffer, format="PNG")
    except (OSError, ValueError) as error:
        raise RunInputError(
            f"{path.name}: expected a picture of an institution, found another file"
        ) from error
    return buffer.getvalue()
