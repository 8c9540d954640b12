"""What a prediction is, in words and as a file: the lines of `casam predict`, its facts, its PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from casam_core.metrics.segmentation import dice, edge_distance
from casam_use.propagation import VolumePrediction
from casam_use.scan import Scan
from casam_use.segmenter import Prediction


def volume_facts(
    found: VolumePrediction, scan: Scan, true_DHW: NDArray[np.int64] | None
) -> list[dict[str, object]]:
    """Of each object: where it ends, its volume, and its scores if there is a true mask.

    The true object has the number of the box; for an object that a finder found, it is the one with most
    voxels in common.
    """
    objects = []
    for number, ends in enumerate(found.reached, 1):
        mask_DHW = found.labels_DHW == number
        facts: dict[str, object] = {
            "slices": "none" if ends is None else f"{ends[0]} to {ends[1]}",
            "millilitres": round(float(mask_DHW.sum()) * scan.voxel / 1000, 2),
        }
        if true_DHW is not None:
            own = number if found.first.scores_N is None else most_shared(true_DHW[mask_DHW])
            own_DHW = true_DHW == own
            measurable = mask_DHW.any() and own_DHW.any() and scan.rectangular
            facts["dice"] = round(dice(mask_DHW.reshape(1, -1), own_DHW.reshape(1, -1)), 3)
            distance = edge_distance(mask_DHW, own_DHW, scan.spacing) if measurable else None
            facts["hd95_mm"] = None if distance is None else round(distance, 2)
        objects.append(facts)
    return objects


def most_shared(labels_V: NDArray[np.int64]) -> int:
    """The most frequent label, without the background; -1, which no object has, if there is none."""
    numbers, counts = np.unique(labels_V[labels_V != 0], return_counts=True)
    return int(numbers[counts.argmax()]) if len(numbers) else -1


def fact_text(fact: tuple[str, object]) -> str:
    """`dice 0.871`; a dash for what cannot be measured."""
    name, value = fact
    return f"{name} {'-' if value is None else value}"


def empty_warnings(prediction: Prediction, tasks: Sequence[str], *, forced: bool) -> Iterator[str]:
    """One line about all prompts with an empty mask, if there are any."""
    if empty := [str(n) for n, mask_HW in enumerate(prediction.masks_NHW, 1) if not mask_HW.any()]:
        advice = advice_for_empty(prediction, tasks, forced=forced)
        yield f"warning: prompt {', '.join(empty)}: the mask is empty (0 pixels). {advice}"


def advice_for_empty(prediction: Prediction, tasks: Sequence[str], *, forced: bool) -> str:
    """Who answered with an empty mask, and what to try."""
    others = [name for name in tasks if name != prediction.name]
    if prediction.name != "identity":
        who = "You chose" if forced else "The image was recognised as"
        return (
            f"{who} {prediction.name!r}; move the box or point onto the object, or try frozen SAM: "
            "--task identity"
        )
    who = "You chose frozen SAM" if forced else "The image fits no task of the bank, so frozen SAM answered"
    rest = f", or try a task of the bank: --task {others[0]}" if others else ""
    return f"{who}; move the box or point onto the object{rest}"


def nothing_found(prediction: Prediction) -> str:
    """Why there is no mask, and what to try."""
    if prediction.name == "identity":
        unknown = ", and the image fits no task" if prediction.route.task is None else ""
        return f"found      nothing: frozen SAM has no finder{unknown}; add --box"
    return f"found      nothing that the finder of {prediction.name!r} is sure of; add --box"


def facts_of(prediction: Prediction) -> dict[str, object]:
    """What `predict` prints, for --json."""
    prompts = zip(prediction.iou_N, prediction.masks_NHW, strict=True)
    found = {} if prediction.scores_N is None else {"found": prediction.scores_N.tolist()}
    return found | {
        "route": prediction.name,
        "nearest": prediction.route.nearest,
        "score": prediction.route.score,
        "threshold": prediction.threshold,
        "prompts": [{"iou_estimate": float(iou), "pixels": int(mask.sum())} for iou, mask in prompts],
    }


def lines_of(prediction: Prediction, *, forced: bool) -> Iterator[str]:
    """One fact per line: a name, blanks, the value."""
    route = prediction.route
    yield f"route      {prediction.name}{' (chosen with --task)' if forced else ''}"
    yield f"nearest    {route.nearest or '-'}"
    yield f"score      {'-' if route.score is None else f'{route.score:.6g}'}"
    yield f"threshold  {'-' if prediction.threshold is None else f'{prediction.threshold:.6g}'}"
    for number, (iou, mask_HW) in enumerate(zip(prediction.iou_N, prediction.masks_NHW, strict=True), 1):
        kind = "prompt" if prediction.scores_N is None else "found"
        yield f"{kind} {number:<3} IoU estimate {iou:.3f}, {int(mask_HW.sum())} pixels"
    if prediction.scores_N is not None and len(prediction.scores_N) == 0:
        yield nothing_found(prediction)


def png_of(labels_HW: NDArray[np.int32]) -> bytes:
    """The label map as an 8-bit PNG, 16-bit beyond 255 labels."""
    return as_png(labels_HW.astype(np.uint8 if labels_HW.max() <= 255 else np.uint16))


def as_png(pixels: NDArray[np.generic]) -> bytes:
    """Gray or RGB pixels as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
