"""A box or points on an image: frozen SAM, the router's answer and chosen entries side by side.

An image is encoded once; then a prompt costs a decoder pass for each answer. Images and masks stay in this
process's memory and are forgotten when the studio ends; an upload is a temporary file while it is read.
"""

from __future__ import annotations

import io
import json
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from casam_core.errors import PromptError
from casam_core.routing.decision import IDENTITY
from scenarios.studio.shelf import RunItem

if TYPE_CHECKING:
    from torch import Tensor

    from casam_use.segmenter import Prediction, Segmenter

MOST_OPEN, MOST_BANKS = 6, 2
LARGEST_UPLOAD = 64 * 1024 * 1024
LONGEST_SIDE = 1024
"""Pixels of an image on a page; masks that are saved have the image's own size."""

ROUTED = "routed"
FROZEN_COLOUR, COLOUR = (250, 160, 40), (70, 130, 255)


@dataclass(frozen=True)
class Answer:
    """One entry's masks. entry: `identity`, `routed` or a task. seconds: from the prompt to the masks."""

    entry: str
    prediction: Prediction
    seconds: float

    @property
    def title(self) -> str:
        """What the page calls it."""
        if self.entry == IDENTITY:
            return "frozen SAM"
        used = "frozen SAM" if self.prediction.name == IDENTITY else self.prediction.name
        return f"routed to {used}" if self.entry == ROUTED else f"entry {self.entry}"


@dataclass
class Opened:
    """One image with its embedding. seconds: of encoding. answers: of the last prompt, by entry."""

    key: str
    name: str
    run: RunItem
    image_HW3: NDArray[np.uint8]
    z_1CHW: Tensor
    seconds: float
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image_HW3.shape[1], self.image_HW3.shape[0]


class Desk:
    """Open images and loaded banks, the last used ones."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._segmenters: OrderedDict[Path, Segmenter] = OrderedDict()
        self._lock = threading.Lock()  # one backbone per process, one request at a time

    def open_file(self, path: Path, run: RunItem) -> Opened:
        """Read and encode an image for the bank of a run. Raises CasamError."""
        return self._open(path.name, path, run)

    def open_bytes(self, name: str, content: bytes, run: RunItem) -> Opened:
        """The same for an image that a person chose in the browser. Raises CasamError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"upload{Path(name).suffix.lower()}"
            path.write_bytes(content)
            return self._open(Path(name).name[:80], path, run)

    def _open(self, name: str, path: Path, run: RunItem) -> Opened:
        from client.data.pixels import read_image  # with scipy: not before the first page

        image_HW3 = read_image(path)
        with self._lock:
            segmenter = self._segmenter(run)
            begun = time.perf_counter()
            z_1CHW = segmenter.embed(image_HW3)
            seconds = time.perf_counter() - begun
            opened = Opened(secrets.token_urlsafe(9), name, run, image_HW3, z_1CHW, seconds)
            self._opened[opened.key] = opened
            while len(self._opened) > MOST_OPEN:
                self._opened.popitem(last=False)
            return opened

    def _segmenter(self, run: RunItem) -> Segmenter:
        if run.bank is None:
            raise PromptError(f"{run.name}: expected a run with a bank, found none; choose another run")
        if run.bank not in self._segmenters:
            from casam_use.loaded_bank import load_bank
            from casam_use.segmenter import Segmenter, backbone_for

            bank, (name, checkpoint) = load_bank(run.bank), backbone_of(run.path)
            self._segmenters[run.bank] = Segmenter(backbone_for(bank, name, checkpoint=checkpoint), bank)
        self._segmenters.move_to_end(run.bank)
        while len(self._segmenters) > MOST_BANKS:
            self._segmenters.popitem(last=False)
        return self._segmenters[run.bank]

    def opened(self, key: str) -> Opened:
        """The open image. Raises PromptError if it was closed."""
        if key not in self._opened:
            raise PromptError("this image is no longer open; open it again")
        self._opened.move_to_end(key)
        return self._opened[key]

    def entries(self, opened: Opened) -> list[str]:
        """Tasks of the bank, in the order of learning."""
        with self._lock:
            return list(self._segmenter(opened.run).bank)

    def answer(
        self,
        opened: Opened,
        boxes: Sequence[Sequence[float]],
        points: Sequence[Sequence[float]],
        entries: Sequence[str],
        negatives: Sequence[Sequence[float]] = (),
        one_object: bool = False,
    ) -> list[Answer]:
        """Frozen SAM, the routed answer, and the chosen entries. Raises CasamError.

        negatives: points that are not the object; all prompts are then of one object.
        """
        labels = [1] * len(points) + [0] * len(negatives) if negatives else None
        with self._lock:
            segmenter = self._segmenter(opened.run)
            made: dict[str, Answer] = {}

            def of(entry: str, task: str) -> Answer:
                """The masks of one entry; frozen SAM and the routed one are often the same."""
                if task not in made:
                    begun = time.perf_counter()
                    prediction = segmenter.predict(
                        opened.image_HW3,
                        boxes,
                        points=[*points, *negatives],
                        labels=labels,
                        one_object=one_object,
                        task=task,
                        embedding=opened.z_1CHW,
                    )
                    made[task] = Answer(entry, prediction, time.perf_counter() - begun)
                return replace(made[task], entry=entry)

            frozen = of(IDENTITY, IDENTITY)
            routed = of(ROUTED, frozen.prediction.route.name)
            answers = [frozen, routed, *(of(entry, entry) for entry in dict.fromkeys(entries))]
            opened.answers = {answer.entry: answer for answer in answers}
            return answers


def backbone_of(run: Path) -> tuple[str | None, str | None]:
    """(name, checkpoint) of the run's backbone on this machine, from its own files; None where they
    are silent.
    """

    def read(name: str) -> dict[str, Any]:
        path = run / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content if isinstance(content, dict) else {}

    try:
        name, checkpoint = (
            read("scenario.json").get("backbone", {}).get("name"),
            read("order.json").get("checkpoint"),
        )
    except (OSError, ValueError) as error:
        raise PromptError(f"{run.name}: expected the run's scenario, found a damaged file") from error
    return name, checkpoint or None


def numbers(text: str, columns: int) -> list[list[float]]:
    """Lines of `8, 8, 40, 40` as rows of numbers. Raises PromptError."""
    rows = []
    for line in filter(str.strip, text.replace(";", "\n").splitlines()):
        try:
            row = [float(part) for part in line.replace(",", " ").split()]
        except ValueError:
            row = []
        if len(row) != columns:
            raise PromptError(f"expected {columns} numbers in a line, found {line.strip()[:60]!r}")
        rows.append(row)
    return rows


def shrunk(image_HW3: NDArray[np.uint8]) -> bytes:
    """PNG of the image, at most LONGEST_SIDE pixels wide and high."""
    picture = Image.fromarray(image_HW3)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return as_png(picture)


def drawn(opened: Opened, answer: Answer) -> bytes:
    """PNG of the image with the masks of an answer: tinted inside, a clear line around."""
    from client.data.preview import outlines

    picture = Image.fromarray(opened.image_HW3)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    shown_HW3 = np.asarray(picture).astype(np.float32)
    colour = FROZEN_COLOUR if answer.prediction.name == IDENTITY else COLOUR
    for mask_HW in answer.prediction.masks_NHW:
        small = np.asarray(Image.fromarray(mask_HW).resize(picture.size, Image.Resampling.NEAREST))
        shown_HW3[small] = 0.65 * shown_HW3[small] + 0.35 * np.array(colour, np.float32)
        shown_HW3[outlines(small.astype(np.int32))] = colour
    return as_png(Image.fromarray(shown_HW3.astype(np.uint8)))


def as_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
