"""Images per second through the frozen encoder: the faster variants compared with the plain call.

LiteMedSAM has its real weights, so this benchmark also measures the effect of the different rounding on the
embedding and on the IoU of frozen SAM on phantoms. ViT-B has random weights, for speed only.
`ratio_lite_medsam` is for a thousand images with the faster variant, including the seconds of torch.compile.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.models import SEED, cpu, lite_medsam, phantoms, random_vit_b
from casam_bench.timing import clock, interleaved
from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.examples import Example
from casam_core.model.forms.affine import IdentityLayer
from casam_core.model.validation import validator
from casam_core.seeding import numpy_generator
from client.data.dataset import LoadedSample

CACHE = "TORCHINDUCTOR_CACHE_DIR"
MODALITIES = ("polyp", "histology", "cardiac_mr", "dental_xray")
IMAGES, SMOKE_IMAGES, REPEATS, VIT_REPEATS, MANY = 8, 2, 5, 2, 1000


def run(around: Surroundings) -> Figures:
    """Figures: ratio_lite_medsam, ratio_vit_b; iou_change (points, absolute) with its
    standard error over images iou_change_error, iou_plain, embedding_error
    (relative, root mean square); ratio_lite_medsam_fast and _compiled, compile_seconds, pays_after (images);
    seconds per image of every side."""
    plain = lite_medsam(cpu(around.threads))
    fast = lite_medsam(cpu(around.threads, encoder="fast"))
    images = SMOKE_IMAGES if around.smoke else IMAGES
    samples = [item for name in MODALITIES[: 1 if around.smoke else None] for item in phantoms(name, images)]
    around.say(f"encode: {len(samples)} images by both encoders")
    figures = quality(plain, fast, samples)
    image = samples[0].image_HW3
    sides = {"plain": lambda: plain.encode([image]), "fast": lambda: fast.encode([image])}
    if not around.smoke and shutil.which("g++"):
        around.say("encode: compile")
        compiled = lite_medsam(cpu(around.threads, encoder="compiled"))
        sides["compiled"] = lambda: compiled.encode([image])
        figures["compile_seconds"] = first_call(sides["compiled"])
    seconds = interleaved(sides, repeats=REPEATS, threads=around.threads, warm_up=False)
    torch._dynamo.reset()
    figures |= ratios(seconds, figures.get("compile_seconds", 0.0))
    if not around.smoke:
        around.say("encode: vit_b")
        figures |= vit_b(around)
    show(around, figures)
    return figures


def quality(plain: Backbone, fast: Backbone, samples: Sequence[LoadedSample]) -> Figures:
    """The effect of the different rounding on embeddings and on frozen SAM's masks."""
    pairs = [(plain.encode([s.image_HW3])[0], fast.encode([s.image_HW3])[0]) for s in samples]
    error = float(np.mean([float((z - y).norm() / z.norm()) for z, y in pairs]))
    before_N, after_N = (
        np.array([frozen_iou(plain, pair[side], s) for pair, s in zip(pairs, samples, strict=True)])
        for side in (0, 1)
    )
    change_N = 100 * (after_N - before_N)
    return {
        "embedding_error": error,
        "iou_plain": float(before_N.mean()),
        "iou_change": float(abs(change_N.mean())),
        "iou_change_error": float(change_N.std(ddof=1) / len(change_N) ** 0.5),
    }


def frozen_iou(backbone: Backbone, z_CHW: Tensor, sample: LoadedSample) -> float:
    """IoU of frozen SAM on one image with the true boxes, at the decoder's resolution."""
    known = Example(z_CHW, sample.labels_HW)
    rng = numpy_generator(SEED, "encode")
    validate = validator([known], backbone, TrainingSpec(), rng)
    assert validate is not None  # every phantom has visible instances
    return validate(IdentityLayer(backbone.geometry.channels)).iou


def first_call(encode: Callable[[], object]) -> float:
    """Wall-clock seconds of a call that compiles first; the compiler works in other processes.

    torch's folder of compiled code is empty here, so that everything is compiled.
    """
    wall = clock(2)
    with (
        tempfile.TemporaryDirectory(prefix="casam-bench-") as folder,
        patch.dict(os.environ, {CACHE: folder}),
    ):
        begun = wall()
        encode()
        return wall() - begun


def ratios(seconds: Mapping[str, float], compile_seconds: float) -> Figures:
    """Seconds of plain over those of every variant; for a thousand images, over the faster variant."""
    plain, fast = seconds["plain"], seconds["fast"]
    figures = {f"{name}_seconds": taken for name, taken in seconds.items()}
    figures["ratio_lite_medsam_fast"] = plain / fast
    taken = MANY * fast
    if (compiled := seconds.get("compiled")) is not None:
        figures["ratio_lite_medsam_compiled"] = plain / compiled
        if compiled < fast:
            figures["pays_after"] = compile_seconds / (fast - compiled)
        taken = min(taken, compile_seconds + MANY * compiled)
    return figures | {"ratio_lite_medsam": MANY * plain / taken}


def vit_b(around: Surroundings) -> Figures:
    """One image at 1024 pixels, random weights."""
    image = phantoms("polyp", 1)[0].image_HW3
    backbone = random_vit_b(cpu(around.threads))
    fast = random_vit_b(cpu(around.threads, encoder="fast"))
    sides = {"plain": lambda: backbone.encode([image]), "fast": lambda: fast.encode([image])}
    seconds = interleaved(sides, repeats=VIT_REPEATS, threads=around.threads, warm_up=False)
    return {
        "ratio_vit_b": seconds["plain"] / seconds["fast"],
        "vit_b_plain_seconds": seconds["plain"],
        "vit_b_fast_seconds": seconds["fast"],
    }


def show(around: Surroundings, figures: Figures) -> None:
    """A row per encoder and variant."""
    columns = ("encoder", "variant", "s / image", "ratio")
    table = table_of("frozen encoders, seconds an image", columns, left=2)
    rows = [
        ("lite_medsam", "plain", "plain_seconds", None),
        ("lite_medsam", "fast", "fast_seconds", "ratio_lite_medsam_fast"),
        ("lite_medsam", "compiled", "compiled_seconds", "ratio_lite_medsam_compiled"),
        ("vit_b (random)", "plain", "vit_b_plain_seconds", None),
        ("vit_b (random)", "fast", "vit_b_fast_seconds", "ratio_vit_b"),
    ]
    for encoder, variant, seconds, ratio in rows:
        if seconds in figures:
            table.add_row(
                encoder, variant, f"{figures[seconds]:.2f}", f"{figures[ratio]:.2f}" if ratio else "1"
            )
    around.show(table)
    around.say(
        f"encode: IoU of frozen SAM changes by {figures['iou_change']:.2f} points (standard error "
        f"{figures['iou_change_error']:.2f}, from {figures['iou_plain']:.3f}), "
        f"embeddings by {figures['embedding_error']:.1%}"
    )
