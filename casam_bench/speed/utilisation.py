"""The share of the machine's GEMM peak that a training step of the residual form achieves.

torch's own counter counts FLOPs: two per multiply-add; none for norms, activations and the optimiser,
although they take time. The step is forward, backward and Adam on one batch of embeddings. A second figure is
for the whole step with the decoder and five instances per image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.card.card_training import alignment_step
from casam_bench.models import cpu, lite_medsam, phantoms
from casam_bench.speed.machine import gemm_peak
from casam_bench.timing import interleaved
from casam_core.config.named_parts import AlignmentSpec
from casam_core.config.scenario import TrainingSpec
from casam_core.model.examples import Example
from casam_core.model.forms import build_layer
from casam_core.model.training import decode_batch, draw_batch
from casam_core.seeding import numpy_generator

IMAGES, CHANNELS, CELLS, INSTANCES, REPEATS = 2, 256, 64, 5, 5
PRECISIONS = ("float32", "bfloat16")


def run(around: Surroundings) -> Figures:
    """Figures: share (float32), share_bfloat16; share_with_decoder; gflops of every side, gflop of a step."""
    columns = ("precision", "GFLOP", "GFLOP/s", "peak", "share")
    table = table_of(f"residual form, a step of {IMAGES} images: share of the GEMM peak", columns)
    figures: Figures = {}
    for precision in PRECISIONS:
        peak = gemm_peak(precision, around.threads)
        compute = cpu(around.threads, precision=precision)
        step = alignment_step(compute, IMAGES, CHANNELS, CELLS, torch.contiguous_format)
        work = gflop(step)
        seconds = interleaved({"step": step}, repeats=REPEATS, threads=around.threads)["step"]
        suffix = "" if precision == "float32" else f"_{precision}"
        figures |= {
            f"share{suffix}": work / seconds / peak,
            f"gflops{suffix}": work / seconds,
            f"peak{suffix}": peak,
            "gflop": work,
        }
        table.add_row(
            precision, *(f"{v:.1f}" for v in (work, work / seconds, peak)), f"{work / seconds / peak:.0%}"
        )
    if not around.smoke:
        step = whole_step(around)
        work = gflop(step)
        seconds = interleaved({"step": step}, repeats=REPEATS, threads=around.threads)["step"]
        figures["share_with_decoder"] = work / seconds / figures["peak"]
        table.add_row(
            "float32, with decoder",
            *(f"{v:.1f}" for v in (work, work / seconds, figures["peak"])),
            f"{figures['share_with_decoder']:.0%}",
        )
    around.show(table)
    return figures


def gflop(step: Callable[[], object]) -> float:
    """GFLOP of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def whole_step(around: Surroundings) -> Callable[[], None]:
    """A step on one of the product's batches: layer, decoder, loss, Adam."""
    backbone = lite_medsam(cpu(around.threads))
    layer = build_layer(AlignmentSpec(form="residual"), CHANNELS, 0)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-4)
    known = [Example(torch.randn(CHANNELS, CELLS, CELLS), s.labels_HW) for s in phantoms("histology", IMAGES)]
    spec = TrainingSpec(instances=INSTANCES)
    rng = numpy_generator(0, "utilisation")
    drawn = draw_batch(torch.arange(IMAGES).numpy(), known, backbone, spec, rng)

    def step() -> None:
        optimiser.zero_grad()
        decode_batch(layer, backbone, drawn).loss(spec).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step
