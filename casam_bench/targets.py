"""Targets for the figures of speed, and a Markdown table of measured figures for docs/performance.md.

casam bench --all --json figures.json
python -m casam_bench.targets figures.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from casam_bench.bench import Figures, markdown


@dataclass(frozen=True)
class Target:
    """One figure. better: its better direction; None: the figure has no target and is only listed."""

    benchmark: str
    figure: str
    what: str
    better: Literal["higher", "lower"] | None = None
    bound: float = 0.0

    def met(self, value: float) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.better is None:
            return None
        return value >= self.bound if self.better == "higher" else value <= self.bound

    @property
    def wish(self) -> str:
        """The target as text."""
        return "" if self.better is None else f"{'≥' if self.better == 'higher' else '≤'} {self.bound:g}"


TARGETS = (
    Target("machine", "gemm_float32", "GEMM peak, float32, GFLOP/s"),
    Target("machine", "gemm_bfloat16", "GEMM peak, bfloat16, GFLOP/s"),
    Target("machine", "memory_read", "reading memory, GB/s"),
    Target("encode", "ratio_lite_medsam", "LiteMedSAM, fast over plain, 1,000 images", "higher", 2.5),
    Target("encode", "ratio_vit_b", "ViT-B (random weights), fast over plain", "higher", 2.5),
    Target("encode", "iou_change", "IoU of frozen SAM, fast against plain, points", "lower", 0.2),
    Target("encode", "iou_change_error", "its standard error over images"),
    Target("encode", "embedding_error", "embeddings, fast against plain, relative"),
    Target("train", "ratio_vit_b", "an epoch, ViT-B (random weights), official loop over ours", "higher", 10),
    Target("train", "ratio_24_vit_b", "24 epochs with the one encoding, ViT-B"),
    Target("train", "ratio_lite_medsam", "an epoch, LiteMedSAM"),
    Target("train", "ratio_bfloat16_lite_medsam", "the same with ours in bfloat16"),
    Target("train", "loss_error", "losses, ours against official, relative", "lower", 1e-4),
    Target("train", "iou_change_bfloat16", "IoU after training in bfloat16, points", "lower", 0.5),
    Target("train", "iou_change_float16_entry", "IoU with a float16 entry, points", "lower", 0.1),
    Target("train", "step_ratio_all", "a step, SAM's own decoder over ours"),
    Target("train", "step_ratio_means", "the same with training.far_cells = means", "higher", 4),
    Target("train", "step_cosine", "its gradient against the exact one, cosine", "higher", 0.98),
    Target("train", "decode_ratio", "a decode without gradients"),
    Target("utilisation", "share", "residual form's step over the GEMM peak, float32", "higher", 0.6),
    Target("utilisation", "share_bfloat16", "the same in bfloat16"),
    Target("utilisation", "share_with_decoder", "the whole step with decoder and loss, float32"),
    Target(
        "evaluate", "passes_ratio_9", "decoder passes, everything over what changed, 9 stages", "higher", 4
    ),
    Target("evaluate", "passes_ratio_30", "30 stages"),
    Target("evaluate", "passes_ratio_100", "100 stages", "higher", 30),
    Target("evaluate", "seconds_ratio_100", "seconds of the same, tiny backbone"),
    Target("evaluate", "identical", "results are the same bits (1 = yes)", "higher", 1),
    Target("route", "ms_1", "route an image among 1 entry, ms"),
    Target("route", "ms_10", "10 entries"),
    Target("route", "ms_100", "100 entries"),
    Target("route", "ms_1000", "1,000 entries", "lower", 0.5),
    Target("route", "gaussian_ms_1000", "the Gaussian router, in one product"),
    Target("route", "floor_ms_1000", "reading their states at the measured speed"),
    Target("route", "one_by_one_ms_1000", "one by one"),
    Target("route", "vae_ms_1000", "the paper's VAE, one by one"),
    Target("route", "wrong", "decisions that differ from one by one", "lower", 0),
    Target("wire", "entry_bytes", "bytes of a default entry, layer and router"),
    Target("wire", "paper_over_ours", "the paper's layer over it", "higher", 1000),
    Target("wire", "paper_layer_over_ours", "layer against layer"),
    Target("wire", "paper_over_ours_float32", "with bank.precision = float32"),
    Target("wire", "paper_over_ours_gaussian", "with a Gaussian router"),
    Target("wire", "over_entries_9", "an institution's bytes over its entries', 9 stages", "lower", 1.1),
    Target("wire", "over_entries_100", "100 stages", "lower", 1.1),
    Target("wire", "ratio_9", "sending the whole bank over ours, 9 stages"),
    Target("wire", "ratio_100", "100 stages"),
    Target("wire", "stage_growth_100", "seconds of one of its last stages over one of its first"),
    Target("scale", "ratio_9", "overhead over an app that does nothing, 9 institutions", "lower", 1.5),
    Target("scale", "ratio_100", "100 institutions", "lower", 1.5),
    Target("scale", "ratio_1000", "1,000 institutions", "lower", 1.5),
    Target("scale", "ratio_all_1000", "the same, over one that asks all at once"),
    Target("scale", "peak_gib", "memory of the whole simulation at 1,000, GiB"),
    Target("memory", "growth", "anonymous memory, 10,000 images over 100", "lower", 1.1),
    Target("memory", "bytes_per_image", "bytes an image"),
)


def rows(figures: Mapping[str, Figures]) -> Iterator[tuple[str, ...]]:
    """Lines of the table, also for figures that were not measured."""
    for target in TARGETS:
        value = figures.get(target.benchmark, {}).get(target.figure)
        shown = "not measured" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        status = "" if value is None else {True: "met", False: "**missed**", None: ""}[target.met(value)]
        yield f"`{target.benchmark}`", f"{target.what} (`{target.figure}`)", shown, target.wish, status


if __name__ == "__main__":
    measured = json.loads(Path(sys.argv[1]).read_text())
    print(markdown(("benchmark", "figure", "measured", "target", ""), rows(measured)))
