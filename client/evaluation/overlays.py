"""Pictures for the institution only: its images with outlines of the truth, of frozen SAM and of the bank.

Off by default. They are drawn at the institution's last stage, into a folder below `private/` that only its
owner can open. This happens after the answer to the server was computed, so the answer does not depend on
them.
"""

from __future__ import annotations

import json
import re
import string
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from casam_core.bank.bank import Bank
from casam_core.model.forms import AlignmentLayer
from casam_core.protocol.payload import Job
from client.data.dataset import LoadedSample, Sample
from client.data.preview import outlines, private_folder, spread
from client.data.task_data import TaskData
from client.evaluation.evaluator import FROZEN, Evaluator
from client.evaluation.own_entries import KnownEntries, known_entries
from client.evaluation.personal import with_personal
from client.institution import Institution
from client.node.incidents import keep

MOST = 50
"""Upper limit for the pictures per task that a site may ask for."""
TRUTH, SAM, OURS = (40, 200, 90), (250, 160, 40), (70, 130, 255)
GAP = 4
PANELS = ("image", "truth", "frozen SAM", "with the bank", "difference")
"""What a picture shows side by side. PANELS of equal width, with GAP pixels between them."""

LIST = "pictures.json"
"""Beside the page: the same facts for programs of the institution (`casam studio`)."""


@dataclass(frozen=True)
class Picture:
    """One image as it was routed and segmented. file: name of the picture, relative to the page."""

    task: str
    sample: str
    route: str
    iou: float
    frozen_iou: float
    file: str


def draw_overlays(institution: Institution, job: Job, received: Bank) -> None:
    """Complete the institution's own entries; write the page if the site asks for one at its last stage.

    An error is written to the site's own log only; it does not change the answer.
    """
    try:
        known = known_entries(institution, received)
        if institution.personal:
            known = with_personal(institution, known, received)
        if institution.site.overlays and job.stage == last_stage(institution):
            draw_page(institution, job.stage, known)
    except Exception:  # for example a full disk; the answer is ready and must still be sent
        keep(f"overlays: {traceback.format_exc()}", institution.site.log)


def draw_page(institution: Institution, stage: int, known: KnownEntries) -> Path:
    """Write private/overlays/index.html with at most `overlays` pictures per task, spread over the images.

    Raises DataError for a folder that others may open.
    """
    folder = institution.site.private / "overlays"
    private_folder(folder)
    evaluator = institution.evaluator()
    pictures: list[Picture] = []
    for task in sorted(institution.site.tasks):
        data, samples = institution.encoded(task, institution.scenario.evaluation.split)
        for sample in spread(samples, min(institution.site.overlays, MOST)):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", sample.id)[-80:]
            file = folder / f"{len(pictures) + 1:03d}-{task}-{name}.png"
            pictures.append(draw(evaluator, task, sample, data, known, file))
    page = folder / "index.html"
    listed = folder / LIST
    for file in (page, listed):
        file.touch(0o600)
    most = institution.scenario.evaluation.max_instances
    facts = {"institution": institution.name, "stage": stage, "most": most}
    drawn_so = {"panels": PANELS, "gap": GAP, "pictures": [asdict(picture) for picture in pictures]}
    listed.write_text(json.dumps(facts | drawn_so))
    figures = "".join(figure(picture) for picture in pictures)
    page.write_text(PAGE.substitute(facts | {"institution": escape(institution.name)}, figures=figures))
    return page


def last_stage(institution: Institution) -> int:
    """The last stage of the stream that the institution takes part in."""
    leaves, stages = institution.site.policy.leaves_at, len(institution.scenario.stream)
    return stages if leaves is None else min(stages, leaves - 1)


def draw(
    evaluator: Evaluator, task: str, sample: Sample, data: TaskData, known: KnownEntries, file: Path
) -> Picture:
    """Write one file of PANELS side by side: the image, the outlines of the truth, of frozen SAM and of the
    bank's entry, and where these two differ."""
    route = evaluator.routed(task, sample, data, known)
    layer = evaluator.layer(route, known)
    loaded = data.load(sample)

    def predicted(layer: AlignmentLayer | None) -> list[NDArray[np.bool_]]:
        seen_CHW = data.seen(sample, evaluator.backbone, layer is not None and layer.sees_pixels)
        return [mask_HW for _, mask_HW in evaluator.decoded(task, sample, loaded, seen_CHW, layer)]

    frozen, ours = predicted(None), predicted(layer)
    numbers = np.unique(loaded.labels_HW[loaded.labels_HW > 0])
    panels = (
        loaded.image_HW3,
        drawn(loaded, (loaded.labels_HW == number for number in numbers), TRUTH),
        drawn(loaded, frozen, SAM),
        drawn(loaded, ours, OURS if layer else SAM),
        difference(loaded, frozen, ours),
    )
    gap = np.full((len(loaded.image_HW3), GAP, 3), 255, np.uint8)
    strip = np.hstack([part for panel in panels for part in (gap, panel)][1:])
    file.touch(0o600)
    Image.fromarray(strip).save(file)
    return Picture(
        task,
        sample.id,
        route.name,
        evaluator.segment(task, sample, data, known, route).mean.iou,
        evaluator.segment(task, sample, data, known, FROZEN).mean.iou,
        file.name,
    )


def drawn(
    loaded: LoadedSample, masks: Iterable[NDArray[np.bool_]], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """The image with the masks' outlines in one colour, three pixels wide; overlapping masks keep theirs."""
    image_HW3 = loaded.image_HW3.copy()
    for mask_HW in masks:
        image_HW3[binary_dilation(outlines(mask_HW.astype(np.int32)))] = colour
    return image_HW3


def difference(
    loaded: LoadedSample, frozen: list[NDArray[np.bool_]], ours: list[NDArray[np.bool_]]
) -> NDArray[np.uint8]:
    """The darkened image. In the bank's colour: pixels that only the bank's entry has right; in frozen SAM's
    colour: that only frozen SAM has right. All masks of an image count as one."""
    truth_HW = loaded.labels_HW > 0
    right = [np.any([np.zeros_like(truth_HW), *masks], 0) == truth_HW for masks in (frozen, ours)]
    image_HW3 = loaded.image_HW3 // 3
    image_HW3[right[1] & ~right[0]] = OURS
    image_HW3[right[0] & ~right[1]] = SAM
    return image_HW3


def figure(picture: Picture) -> str:
    """One picture of the page, as HTML."""
    task, sample, route = (escape(text) for text in (picture.task, picture.sample, picture.route))
    return f"""<figure>
<img src="{escape(picture.file)}" alt="{sample} of {task}: {", ".join(PANELS)}">
<figcaption>{task}, {sample}: sent to {route}. IoU {picture.iou:.3f}, frozen SAM
{picture.frozen_iou:.3f}.</figcaption>
</figure>
"""


# A string, because Flower's bundle cannot contain an HTML file.
PAGE = string.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'">
<title>$institution: own pictures</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
</style></head><body><main>
<h1>$institution: own pictures after stage $stage</h1>
<p><strong>These are images of patients.</strong> They were never sent. This folder belongs to the
institution. From left to right: the image; the truth (green); frozen SAM (orange); the entry that the router
chose (blue); where only the entry is right (blue) and where only frozen SAM is right (orange). At most $most
objects of an image are prompted; the others have no outline.</p>
$figures</main></body></html>
"""
)
