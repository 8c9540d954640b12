"""Routing one image among 1, 10, 100 and 1000 entries: one entry after the other, and all in one product.

States of the default router and of others, with 512 random features and 48 images. A few states are learned;
the others are copies of them with other centres. The timing starts at the pooled feature. The floor is the
time to read the bytes of all states at the measured speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from casam_bench.bench import Figures, Surroundings, table_of
from casam_bench.speed.machine import memory_read
from casam_bench.timing import interleaved
from casam_core.config.named_parts import SHIPPED_FRAMES, PublicFrameSpec, RouterSpec
from casam_core.routing.decision import Route, decide
from casam_core.routing.routers import Arrays, GaussianSpec, Router, VaeSpec, build_router
from casam_core.routing.routers.public_frame import PublicFrameRouter
from casam_use.loaded_bank import STACK_FROM
from casam_use.router_stack import Stack, stack_of

ENTRIES = (1, 10, 100, 1000)
FEATURES, IMAGES, LEARNED, PROBES, REPEATS = 512, 48, 8, 2, 5
DEFAULT = PublicFrameSpec(frame=SHIPPED_FRAMES["lite_medsam", "moments"])
OTHERS = {
    "gaussian": GaussianSpec(),
    "nearest mean": RouterSpec(kind="nearest_mean"),
    "vae": VaeSpec(epochs=1),
}


def run(around: Surroundings) -> Figures:
    """Figures ms_N (the default router, the product's way), one_by_one_ms_N, gaussian_ms_N,
    nearest_mean_ms_N, vae_ms_N, build_ms_1000, slope_us (per entry, from 100 to 1000), floor_ms_1000, wrong
    (decisions that differ)."""
    torch.set_num_threads(around.threads)
    entries = ENTRIES if not around.smoke else ENTRIES[:3]
    generator = torch.Generator().manual_seed(7)
    centres_TF = 5 + torch.randn(max(entries), FEATURES, generator=generator)
    default = build_router(DEFAULT)
    states = states_of(default, centres_TF, generator)
    # Images of seen tasks, and one of an unseen task.
    probes = [*(centres_TF[:PROBES] + 0.3 * torch.randn(PROBES, FEATURES, generator=generator))]
    probes.append(5 + torch.randn(FEATURES, generator=generator))
    others = {
        name: (router, states_of(router, centres_TF, generator))
        for name, spec in OTHERS.items()
        for router in [build_router(spec)]
    }
    bandwidth = memory_read(around.threads)
    figures: Figures = {"memory_read_gb_s": bandwidth, "wrong": 0.0}
    columns = ("entries", "in one product", "one by one", "floor", *OTHERS)
    table = table_of("routing one image, ms", columns, left=0)
    for count in entries:
        known = states[:count]
        sides: dict[str, Callable[[Tensor], Route]] = {"one by one": partial(one_by_one, default, known)}
        for name, (router, of_all) in {"default": (default, states), **others}.items():
            # The same choice as in a bank (casam_use.loaded_bank).
            stack = stack_of(router, of_all[:count]) if count >= STACK_FROM else None
            sides[name] = partial(stacked, router, stack, of_all[:count])
            figures["wrong"] += sum(
                sides[name](f_F) != one_by_one(router, of_all[:count], f_F) for f_F in probes if stack
            )
        seconds = interleaved(
            {name: partial(for_all, side, probes) for name, side in sides.items()},
            repeats=REPEATS,
            threads=around.threads,
        )
        ms = {name: 1e3 * taken / len(probes) for name, taken in seconds.items()}
        floor = 1e3 * bytes_of(known) / bandwidth / 1e9
        figures |= {
            f"ms_{count}": ms["default"],
            f"one_by_one_ms_{count}": ms["one by one"],
            # With fewer entries a bank scores one by one, too: a ratio would be noise.
            **({f"ratio_{count}": ms["one by one"] / ms["default"]} if count >= STACK_FROM else {}),
            f"floor_ms_{count}": floor,
            **{f"{name.replace(' ', '_')}_ms_{count}": ms[name] for name in OTHERS},
        }
        cells = (ms["default"], ms["one by one"], floor, *(ms[name] for name in OTHERS))
        table.add_row(str(count), *(f"{cell:.3f}" for cell in cells))
    last, before = entries[-1], entries[-2]
    figures["slope_us"] = 1e3 * (figures[f"ms_{last}"] - figures[f"ms_{before}"]) / (last - before)
    build = interleaved({"build": lambda: stack_of(default, states)}, repeats=1, threads=around.threads)
    figures[f"build_ms_{last}"] = 1e3 * build["build"]
    around.show(table)
    around.say(
        f"route: {figures['slope_us']:.2f} us per additional entry; {figures['wrong']:.0f} decisions differ"
    )
    return figures


def states_of(router: Router, centres_TF: Tensor, generator: torch.Generator) -> list[Arrays]:
    """A state per task; only LEARNED of them are learned, because a thousand would take minutes."""
    learned = []
    for centre_F in centres_TF[:LEARNED]:
        f_NF = centre_F + 0.3 * torch.randn(IMAGES, FEATURES, generator=generator)
        learned.append(router.fit(router.sufficient_statistics(f_NF, 0)))
    copies = (
        {name: value.copy() for name, value in learned[t % LEARNED].items()} for t in range(len(centres_TF))
    )
    return [moved(router, state, centre_F) for state, centre_F in zip(copies, centres_TF, strict=True)]


def moved(router: Router, state: Arrays, centre_F: Tensor) -> Arrays:
    """The state with another mean, if it has one."""
    if isinstance(router, PublicFrameRouter):
        return {**state, "mean_K": router.frame.place(centre_F.double().numpy()).astype(np.float32)}
    return {**state, "mean_F": centre_F.numpy()} if "mean_F" in state else state


def for_all(side: Callable[[Tensor], Route], probes: Sequence[Tensor]) -> None:
    """Every probe, one after the other."""
    for f_F in probes:
        side(f_F)


def one_by_one(router: Router, known: list[Arrays], f_F: Tensor) -> Route:
    """The decision from every entry's own score."""
    scores = [router.score(f_F, state) for state in known]
    return decide([str(i) for i in range(len(known))], scores, [0.0] * len(known))


def bytes_of(known: list[Arrays]) -> int:
    return sum(value.nbytes for state in known for value in state.values())


def stacked(router: Router, stack: Stack | None, known: list[Arrays], f_F: Tensor) -> Route:
    """The same decision from the scores of those entries that can be the nearest."""
    if stack is None:
        return one_by_one(router, known, f_F)
    near = stack.contenders(f_F)
    scores = [router.score(f_F, known[i]) for i in near]
    return decide([str(i) for i in near], scores, [0.0] * len(near))
