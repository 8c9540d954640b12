"""The product's work on a CUDA card: encode, train, decode, institutions in turn, the paper's plan.

It also runs on the processor, to rehearse it (CASAM_GPU=cpu). Seconds are wall-clock time between two moments
at which the card has finished all its work. SAM's ViT-B has random weights, for speed only.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from rich.table import Table

from casam_bench.bench import Figures, Surroundings
from casam_bench.models import SEED, as_released, lite_medsam, phantoms, random_vit_b
from casam_core.bank.inference import decode_masks
from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError
from casam_core.model.backbones import Backbone
from casam_core.model.compute import Compute, prepare_process
from casam_core.model.examples import Example
from casam_core.model.forms import FORMS, build_layer
from casam_core.model.prompts import Prompts
from casam_core.model.training import decode_batch, draw_batch, train_layer
from casam_core.seeding import numpy_generator
from client.data.dataset import LoadedSample

VARIABLE = "CASAM_GPU"
MODALITY, INSTANCES, IMAGES_PER_STEP = "histology", 5, 6
WARM_UP, REPEATS = 2, 5
VARIANTS = {
    "float32": {"precision": "float32", "encoder": "plain"},
    "bfloat16": {"precision": "bfloat16", "encoder": "plain"},
    "fast": {"precision": "float32", "encoder": "fast"},
}
PAPER_TRAIN, PAPER_TEST, PAPER_EPOCHS, PAPER_TASKS, PAPER_ORDERS = 8_926, 2_049, 24, 9, 3
"""Images of all nine tasks, and the settings of the scenario paper-nine."""


@dataclass(frozen=True)
class Size:
    """How much is measured; on a processor as little as shows that it works."""

    batches: tuple[int, ...]
    images: int
    institutions: int
    vit_b: bool


CARD = Size(batches=(1, 8, 32), images=IMAGES_PER_STEP, institutions=100, vit_b=True)
REHEARSAL = Size(batches=(1,), images=1, institutions=3, vit_b=False)


def device_of() -> str:
    """The device of this measurement: cuda, or what CASAM_GPU names. Raises RunError if there is none."""
    device = os.environ.get(VARIABLE, "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(
            f"bench gpu: expected a CUDA device, torch {torch.__version__} finds none; "
            f"{VARIABLE}=cpu rehearses the measurement on the processor"
        )
    return device


def run(around: Surroundings) -> Figures:
    """Figures by backbone B and variant V.

    B_V_N_images_per_second: N images together. B_step_FORM_seconds: a step of 6 images x 5 boxes from
    embeddings. B_official_seconds: the authors' step, which encodes and compares whole masks.
    B_ratio_official; B_masks_per_second. growth_mib: memory, from the first institution to the last.
    paper_nine_minutes and its parts: three orders, from the figures above. peak_gib.
    """
    device = device_of()
    size = REHEARSAL if around.smoke or device == "cpu" else CARD
    models: dict[str, Callable[[Compute], Backbone]] = {"lite_medsam": lite_medsam}
    if size.vit_b:
        models["vit_b"] = random_vit_b
    figures: Figures = {}
    for name, load in models.items():
        around.say(f"gpu: {name} on {name_of(device)}")
        figures |= {f"{name}_{key}": value for key, value in measured(load, device, size, around).items()}
    around.say(f"gpu: {size.institutions} institutions in turn")
    figures["growth_mib"] = growth(lite_medsam, device, size)
    if size.vit_b:
        figures |= paper_nine(figures)
    if device.startswith("cuda"):
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    show(around, figures)
    return figures


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def compute_on(device: str, around: Surroundings, precision: str, encoder: str) -> Compute:
    compute = Compute(device=device, threads=around.threads, precision=precision, encoder=encoder)
    prepare_process(compute)
    return compute


def seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Median wall-clock seconds of `work`, until the card has finished it."""

    def finished() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    taken = []
    for _ in range(WARM_UP if device.startswith("cuda") else 1):
        work()
    for _ in range(repeats if device.startswith("cuda") else 1):
        finished()
        begun = time.perf_counter()
        work()
        finished()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def measured(load: Callable[[Compute], Backbone], device: str, size: Size, around: Surroundings) -> Figures:
    """One backbone: encoding in every variant, a step of every way to train, and decoding."""
    samples, figures = phantoms(MODALITY, size.images), Figures()
    for variant, settings in VARIANTS.items():
        backbone = load(compute_on(device, around, **settings))
        for count in size.batches:
            images = [samples[i % len(samples)].image_HW3 for i in range(count)]
            taken = seconds(lambda b=backbone, x=images: b.encode(x), device)  # type: ignore[misc]
            figures[f"{variant}_{count}_images_per_second"] = count / taken
    plain = load(compute_on(device, around, **VARIANTS["float32"]))
    half = load(compute_on(device, around, **VARIANTS["bfloat16"]))
    for form in ("low_rank", "residual", "casam"):
        figures[f"step_{form}_seconds"] = seconds(step_of(form, half, samples), device)
    figures["official_seconds"] = seconds(official_step(plain, samples), device)
    figures["ratio_official"] = figures["official_seconds"] / figures["step_casam_seconds"]
    figures["masks_per_second"] = masks_per_second(half, samples[0], device)
    return figures


def step_of(form: str, backbone: Backbone, samples: list[LoadedSample]) -> Callable[[], None]:
    """The product's step: embeddings come from the processor's memory, as from a store."""
    known = [Example(backbone.encode([s.image_HW3])[0].cpu(), s.labels_HW) for s in samples]
    layer = build_layer(FORMS[form].section(form=form), backbone.geometry.channels, 0)
    return gradient_step(layer.to(backbone.compute.device), backbone, lambda: known, TrainingSpec())


def official_step(backbone: Backbone, samples: list[LoadedSample]) -> Callable[[], None]:
    """The authors' step: every image is encoded again in float32; SAM's own decoder; their objective."""
    spec = TrainingSpec(objective="official", far_cells="all")
    layer = build_layer(FORMS["casam"].section(form="casam"), backbone.geometry.channels, 0)

    def encoded() -> list[Example]:
        z_BCHW = backbone.encode([s.image_HW3 for s in samples])
        return [Example(z_CHW, s.labels_HW) for z_CHW, s in zip(z_BCHW, samples, strict=True)]

    return gradient_step(layer.to(backbone.compute.device), as_released(backbone), encoded, spec)


def gradient_step(
    layer: torch.nn.Module, backbone: Backbone, examples: Callable[[], list[Example]], spec: TrainingSpec
) -> Callable[[], None]:
    """Draw, decode, loss, gradient, Adam; the same draws in every call."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-4)

    def step() -> None:
        known = examples()
        rng = numpy_generator(SEED, "gpu")
        drawn = draw_batch(np.arange(len(known)), known, backbone, spec, rng)
        optimiser.zero_grad()
        decode_batch(layer, backbone, drawn).loss(spec).backward()  # type: ignore[no-untyped-call, arg-type]
        optimiser.step()

    return step


@torch.no_grad()
def masks_per_second(backbone: Backbone, sample: LoadedSample, device: str) -> float:
    """Masks of an evaluation, at the image's size, back in the processor's memory."""
    z_CHW, frame = backbone.encode([sample.image_HW3])[0], backbone.frame(sample.image_HW3)
    height, width = sample.labels_HW.shape
    boxes = Prompts(boxes_N4=np.tile(np.array([0, 0, width // 3, height // 3], np.float32), (16, 1)))
    return len(boxes) / seconds(lambda: list(decode_masks(backbone, z_CHW, frame, boxes)), device)


def growth(load: Callable[[Compute], Backbone], device: str, size: Size) -> float:
    """MiB by which the card's memory grew from the first institution's training to the last one's."""
    backbone = load(Compute(device, 1, "float32"))
    samples = phantoms(MODALITY, 2)
    held = []
    for turn in range(size.institutions):
        known = [Example(backbone.encode([s.image_HW3])[0].cpu(), s.labels_HW) for s in samples]
        layer = build_layer(FORMS["low_rank"].section(form="low_rank"), backbone.geometry.channels, turn)
        spec = TrainingSpec(epochs=1, batch_images=1)
        rng = numpy_generator(SEED, "gpu", str(turn))
        train_layer(
            layer, backbone, known, spec, learning_rate=3e-3, rng=rng, progress=lambda done, total: None
        )
        del layer, known
        gc.collect()
        held.append(torch.cuda.memory_allocated() if device.startswith("cuda") else 0)
    return (held[-1] - held[0]) / 2**20


def paper_nine(figures: Figures) -> Figures:
    """Minutes of the scenario paper-nine in three orders, from the measured rates. Every image is encoded
    once for all orders. Evaluation: at most every test image once per stage."""
    batch = max(int(key.split("_")[3]) for key in figures if key.startswith("vit_b_float32_"))
    encode = (PAPER_TRAIN + PAPER_TEST) / figures[f"vit_b_float32_{batch}_images_per_second"]
    train = PAPER_EPOCHS * PAPER_TRAIN / IMAGES_PER_STEP * figures["vit_b_step_casam_seconds"]
    evaluate = PAPER_TASKS * PAPER_TEST * INSTANCES / figures["vit_b_masks_per_second"]
    parts = {"encode": encode, "train": PAPER_ORDERS * train, "evaluate": PAPER_ORDERS * evaluate}
    minutes = {f"paper_nine_{name}_minutes": taken / 60 for name, taken in parts.items()}
    return minutes | {"paper_nine_minutes": sum(minutes.values())}


def show(around: Surroundings, figures: Figures) -> None:
    """A row per figure."""
    table = Table(title="on the card")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}")
    around.show(table)
