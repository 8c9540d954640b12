"""Training steps on a card: ours from held embeddings, the authors' that encodes every time, and their
shares.

The images of a step are as in the paper: six, with five prompts each. Weights of the backbone are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from casam_bench.bench import Figures
from casam_bench.card.card import Card
from casam_bench.models import SEED, SMALL, as_released, phantoms, random_vit
from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.model.backbones import Backbone
from casam_core.model.compute import Compute
from casam_core.model.examples import Example, Examples, holding
from casam_core.model.forms import FORMS, AlignmentLayer, build_layer
from casam_core.model.training import decode_batch, draw_batch, side_of, train_layer
from casam_core.seeding import numpy_generator

IMAGES, INSTANCES, FORMS_MEASURED = 6, 5, ("low_rank", "residual", "casam")
SPECS = {
    "casam": TrainingSpec(instances=INSTANCES),
    "official": TrainingSpec(instances=INSTANCES, objective="official", far_cells="all"),
}


def steps(card: Card, known: Figures) -> Figures:
    """step_PRECISION_FORM_OBJECTIVE_seconds of our steps; official_step_seconds of the authors' step: six
    images through the encoder in float32, torch's TF32 convolutions allowed, SAM's own decoder image by
    image, their objective. ratio_official: it over ours with the same layer and objective, in float32;
    ratio_official_bfloat16: with ours in bfloat16."""
    figures: Figures = {}
    for precision in ("float32", "bfloat16"):
        backbone = vit(card, precision)
        for form in FORMS_MEASURED:
            for objective, spec in SPECS.items():
                name = f"step_{precision}_{form}_{objective}_seconds"
                figures[name] = card.seconds(our_step(form, backbone, held_examples(backbone, spec), spec))
        del backbone
        card.free()
    with nondeterministic():
        figures["official_step_seconds"] = card.seconds(official_step(card))
    for suffix, precision in (("", "float32"), ("_bfloat16", "bfloat16")):
        ours = figures[f"step_{precision}_casam_official_seconds"]
        figures[f"ratio_official{suffix}"] = figures["official_step_seconds"] / ours
    return figures


def alignment(card: Card, known: Figures) -> Figures:
    """alignment_N_seconds and alignment_N_share of the measured peak in bfloat16: a step of the residual
    form alone (forward, backward, Adam) on N embeddings; the same with channels last in memory."""
    figures: Figures = {}
    layouts = {"": torch.contiguous_format, "_channels_last": torch.channels_last}
    channels, cells = (32, 8) if card.small else (256, 64)
    for suffix, layout in layouts.items():
        for images in (IMAGES,) if card.small else (IMAGES, 32):
            step = alignment_step(card.compute("bfloat16"), images, channels, cells, layout)
            with FlopCounterMode(display=False) as counter:
                step()
            taken, name = card.seconds(step), f"alignment_{images}{suffix}"
            figures[f"{name}_seconds"] = taken
            if (peak := known.get("gemm_bfloat16_tflops")) is not None:
                figures[f"{name}_share"] = counter.get_total_flops() / taken / 1e12 / peak
    return figures


def busy(card: Card, known: Figures) -> Figures:
    """training_busy: share of the time of a training in which the card computes: the seconds of its kernels
    by torch's profiler, over the seconds of a training without it. With --trace: a Chrome trace, and the
    ten heaviest kernels."""
    backbone, epochs = vit(card, "bfloat16"), 2 if card.small else 12
    spec = SPECS["official"].model_copy(update={"epochs": epochs})
    examples, layer = held_examples(backbone, spec), layer_of("casam", backbone)

    def train() -> None:
        rng = numpy_generator(SEED, "busy")
        train_layer(layer, backbone, examples, spec, learning_rate=1e-4, rng=rng)

    train()
    taken = card.once(train)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card.cuda else [])]
    with profile(activities=activities) as profiler:
        train()
        card.finish()
    events = profiler.key_averages()
    field = "self_device_time_total" if card.cuda else "self_cpu_time_total"
    if (folder := card.around.trace) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "training.json.gz"))
        table = events.table(sort_by=field, row_limit=10, max_name_column_width=80)
        (folder / "kernels.txt").write_text(table, encoding="utf-8")
        card.around.say(f"gpu:   trace and kernels in {folder}")
    # The processor's side of a call carries the time of its kernels, too; kernels themselves are counted.
    kernels = [e for e in events if not card.cuda or e.device_type.name == "CUDA"]
    return {"training_busy": sum(getattr(e, field) for e in kernels) / 1e6 / taken}


def determinism(card: Card, known: Figures) -> Figures:
    """determinism_price: seconds of our step as the product takes it, with torch's deterministic algorithms,
    over those without."""
    backbone, spec = vit(card, "bfloat16"), SPECS["casam"]
    step = our_step("residual", backbone, held_examples(backbone, spec), spec)
    exact = card.seconds(step)
    with nondeterministic():
        return {"determinism_price": exact / card.seconds(step)}


@contextmanager
def nondeterministic() -> Iterator[None]:
    """Let torch take algorithms whose bits vary."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def vit(card: Card, precision: str) -> Backbone:
    return random_vit(SMALL if card.small else "vit_b", card.compute(precision))


def layer_of(form: str, backbone: Backbone) -> AlignmentLayer:
    layer = build_layer(FORMS[form].section(form=form), backbone.geometry.channels, 0)
    return layer.to(backbone.compute.device)


def held_examples(backbone: Backbone, spec: TrainingSpec) -> Examples:
    """Six images with random embeddings, on the device."""
    geometry = backbone.geometry
    rng = torch.Generator().manual_seed(SEED)
    known = [
        Example(
            torch.randn(geometry.channels, geometry.cells, geometry.cells, generator=rng).half().float(),
            sample.labels_HW,
        )
        for sample in phantoms("histology", IMAGES)
    ]
    return holding(known, backbone.compute, side_of(backbone, spec), 1 << 40)


def our_step(form: str, backbone: Backbone, examples: Examples, spec: TrainingSpec) -> Callable[[], None]:
    """Draw, decode, loss, gradient, Adam."""
    return gradient_step(layer_of(form, backbone), backbone, lambda: examples, spec)


def official_step(card: Card) -> Callable[[], None]:
    """The authors' step; the images are on the card already."""
    backbone = vit(card, "float32")
    samples = phantoms("histology", IMAGES)
    pixels = [backbone.compute.moved(backbone.resized(sample.image_HW3)) for sample in samples]

    def encoded() -> list[Example]:
        z_BCHW = backbone.encode_resized(pixels)
        return [Example(z_CHW, s.labels_HW) for z_CHW, s in zip(z_BCHW, samples, strict=True)]

    return gradient_step(layer_of("casam", backbone), as_released(backbone), encoded, SPECS["official"])


def gradient_step(
    layer: AlignmentLayer, backbone: Backbone, examples: Callable[[], Examples], spec: TrainingSpec
) -> Callable[[], None]:
    """The same draws in every call."""
    fused = True if backbone.compute.device.startswith("cuda") else None
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-4, fused=fused)

    def step() -> None:
        known = examples()
        drawn = draw_batch(np.arange(len(known)), known, backbone, spec, numpy_generator(SEED, "gpu"))
        optimiser.zero_grad()
        decode_batch(layer, backbone, drawn).loss(spec).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def alignment_step(
    compute: Compute, images: int, channels: int, cells: int, layout: torch.memory_format
) -> Callable[[], None]:
    """Forward, backward from a given gradient, Adam."""
    device, fused = compute.device, True if compute.device.startswith("cuda") else None
    layer = build_layer(AlignmentSpec(form="residual"), channels, 0).to(device).to(memory_format=layout)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-4, fused=fused)
    random = partial(torch.randn, images, channels, cells, cells, device=device)
    z_BCHW, gradient_BCHW = (random().to(memory_format=layout) for _ in range(2))

    def step() -> None:
        optimiser.zero_grad()
        with compute.autocast():
            aligned: Tensor = layer(z_BCHW).float()
        aligned.backward(gradient_BCHW)  # type: ignore[no-untyped-call]
        optimiser.step()

    return step
