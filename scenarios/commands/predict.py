"""`casam predict`: segment one image with a finished bank."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from casam_core.bank.segmenter import Prediction

MOST_LABELS = 2**16 - 1


def predict(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or TIFF.")],
    bank: Annotated[Path, typer.Option(help="The bank's folder (in a run: bank/).")],
    out: Annotated[Path, typer.Option(help="The mask: a new .png, 0 background, 1..n per prompt.")],
    box: Annotated[
        list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="First and last pixel; repeatable.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A pixel of the object; repeatable.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Answer with this task's entry, or with identity (frozen SAM).")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Model, where the bank's is not a released one.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint file, for the official SAMs.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(help="1: the bits of a run; more: faster.")] = 1,
) -> None:
    """Segment an image: prints who answers and why, writes the mask of every prompt.

    Masks are numbered in the order of the boxes, then the points; where two overlap, the later one shows.
    """
    boxes = [coordinates("--box", text, 4) for text in box or []]
    points = [coordinates("--point", text, 2) for text in point or []]
    check_out(out, len(boxes) + len(points))

    from casam_core.bank.inference import load_bank
    from casam_core.bank.segmenter import Segmenter, backbone_for, checked_prompts
    from casam_core.files import write_atomic
    from client.data.pixels import read_image

    image_HW3 = read_image(image)
    checked_prompts(boxes, points, *image_HW3.shape[:2])  # a slip should not cost the model's loading time
    loaded = load_bank(bank)
    model = backbone_for(loaded, backbone, checkpoint=checkpoint, device=device, threads=threads)
    prediction = Segmenter(model, loaded).predict(image_HW3, boxes, points=points, task=task)
    write_atomic(out, png_of(prediction.labels))
    report(prediction, forced=task is not None)
    typer.echo(f"mask       {out}")


def report(prediction: Prediction, *, forced: bool) -> None:
    """One fact per line, for reading and for cutting at the first blank."""
    route = prediction.route
    typer.echo(f"route      {prediction.name}{' (chosen with --task)' if forced else ''}")
    typer.echo(f"nearest    {route.nearest or '-'}")
    typer.echo(f"score      {'-' if route.score is None else f'{route.score:.6g}'}")
    typer.echo(f"threshold  {'-' if prediction.threshold is None else f'{prediction.threshold:.6g}'}")
    for number, (iou, mask_HW) in enumerate(zip(prediction.iou_N, prediction.masks_NHW, strict=True), 1):
        typer.echo(f"prompt {number:<3} IoU estimate {iou:.3f}, {int(mask_HW.sum())} pixels")


def coordinates(option: str, text: str, count: int) -> list[float]:
    """`8,8,40,40` as numbers. Raises PromptError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise PromptError(f"{option}: expected {count} numbers with commas between, found {text!r}")
    return numbers


def check_out(out: Path, prompts: int) -> None:
    """Refuse what could not be written, before any work. Raises PromptError."""
    if out.suffix.lower() != ".png":
        raise PromptError(f"--out: expected a name ending in .png, found {out.name!r}")
    if out.exists():
        raise PromptError(f"--out: {out} exists already; name a new file")
    if not out.parent.is_dir():
        raise PromptError(f"--out: expected the folder {out.parent} to exist; make it first")
    if prompts > MOST_LABELS:
        raise PromptError(f"expected at most {MOST_LABELS} prompts, found {prompts}; split them")


def png_of(labels_HW: NDArray[np.int32]) -> bytes:
    """The label map as an 8-bit PNG, 16-bit beyond 255 labels."""
    import numpy as np
    from PIL import Image

    kind = np.uint8 if labels_HW.max() <= 255 else np.uint16
    buffer = io.BytesIO()
    Image.fromarray(labels_HW.astype(kind)).save(buffer, format="PNG")
    return buffer.getvalue()
