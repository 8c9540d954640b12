"""A whole institution on neighbouring datasets: what it adds noise to, and what leaves it without noise.

Both institutions draw the same coins. Where the first one added noise, the second one continues with the
first one's noisy value, because a later private step may depend on everything that was released before. Both
declare the same counts of images and units: these are public.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from casam_core.bank.bank import Bank
from casam_core.config.scenario import BackboneSpec, Scenario
from casam_core.errors import CasamError
from casam_core.model.backbones.window import PIXELS
from casam_core.privacy.discrete_gaussian import SIGMA
from casam_core.privacy.noise import NoiseSource
from casam_core.privacy.units import Units
from casam_core.protocol.messages import (
    AlignReply,
    AlignRequest,
    CalibrateRequest,
    EvaluateRequest,
    Holding,
    RouterRequest,
)
from casam_core.protocol.outcomes import Outcome, outcome_of
from casam_core.protocol.payload import Job, digest_of
from casam_core.protocol.schema import Message
from casam_core.routing.features import pool
from casam_core.routing.routers import build_router, router_spec
from casam_core.routing.routers.public_frame import frame_named
from client.data.splits import PARTS, SplitPart
from client.institution import Institution
from client.release import permission
from client.release.guard import check
from client.release.ledger import Ledger, account_of
from client.release.outbox import with_outcome
from client.release.question import REPLY_TO
from client.site import Site, hosted_sites
from tests.banks import picture, tiny_backbone, tiny_entry

NAME, TASK, OTHER = "north", "polyp", "histology"

Place = tuple[str | int, ...]
"""Where noise is added: kind, stage, round and task of the release, and the number of the sum in it."""


def linear_decode(decoder: object, z_CHW: Tensor, *prompts: Any) -> tuple[list[Tensor], Tensor]:
    """In place of SAM's decoder: each cell's product with the prompt's tokens; 60 % of a site's time goes.

    What a unit may change is limited behind the decoder, whatever it computes.
    """
    image_pe_1CHW, sparse_NTC, dense_MCHW, windows = prompts
    cells_CHW = z_CHW + image_pe_1CHW[0] + dense_MCHW.mean(0)
    logits_NHW = torch.einsum("chw,nc->nhw", cells_CHW, sparse_NTC.mean(1))
    seen = [window.of(logits_HW) for logits_HW, window in zip(logits_NHW, windows, strict=True)]
    logits = [logits_hw.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1) for logits_hw in seen]
    return logits, torch.sigmoid(logits_NHW.mean((1, 2)))


@dataclass(frozen=True)
class Dataset:
    """Units by name; each holds the seeds of its pictures."""

    units: Mapping[str, tuple[int, ...]]

    def without(self, name: str) -> Dataset:
        return Dataset({unit: seeds for unit, seeds in self.units.items() if unit != name})

    def replaced(self, name: str, other: str, seeds: tuple[int, ...]) -> Dataset:
        return Dataset({**self.without(name).units, other: seeds})


@dataclass(frozen=True)
class Case:
    """One site: its data, its reader, its policy, and the scenario's settings."""

    dataset: Dataset
    reader: str
    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    alone: bool


def write(dataset: Dataset, reader: str, folder: Path) -> None:
    """The dataset as files of this reader; a stem is UNIT_NUMBER."""
    (folder / "images").mkdir(parents=True)
    coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for unit, seeds in dataset.units.items():
        for number, seed in enumerate(seeds):
            stem, number_of = f"{unit}_{number}", len(coco["images"]) + 1
            Image.fromarray(picture(TASK, seed)).save(folder / "images" / f"{stem}.png", compress_level=0)
            boxes = boxes_of(seed)
            coco["images"].append({"id": number_of, "file_name": f"{stem}.png", "width": 64, "height": 48})
            for y, x, height, width in boxes:
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                coco["annotations"].append(
                    {"id": len(coco["annotations"]) + 1, "image_id": number_of, "segmentation": [corners]}
                )
            if reader == "folder":
                (folder / "masks").mkdir(exist_ok=True)
                mask = np.zeros((48, 64), np.uint8)
                for value, (y, x, height, width) in enumerate(boxes, 1):
                    mask[y : y + height, x : x + width] = value
                Image.fromarray(mask).save(folder / "masks" / f"{stem}.png", compress_level=0)
            elif reader == "yolo":
                (folder / "labels").mkdir(exist_ok=True)
                polygons = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for y, x, h, w in boxes]
                lines = [" ".join(f"{x / 64} {y / 48}" for x, y in corners) for corners in polygons]
                text = "".join(f"0 {line}\n" for line in lines)
                (folder / "labels" / f"{stem}.txt").write_text(text)
    if reader == "coco":
        (folder / "annotations.json").write_text(json.dumps(coco))


def boxes_of(seed: int) -> list[tuple[int, int, int, int]]:
    """(y, x, height, width) of one to three instances that do not overlap."""
    rng = np.random.default_rng([seed, 5])
    count = int(rng.integers(1, 4))
    return [(int(rng.integers(2, 20)), 2 + 20 * i, int(rng.integers(8, 24)), 16) for i in range(count)]


def scenario_of(case: Case, folder: Path) -> Scenario:
    group = r"(\w+)_" if case.policy.get("budget", {}).get("unit") == "group" else None
    data = {"reader": case.reader, "path": str(folder), "split": {"val": 0.3, "test": 0.3}}
    spec = data | ({"group_pattern": group} if group else {})
    table: dict[str, Any] = {
        "name": "neighbours",
        "seed": case.seed,
        "stream": [TASK, OTHER],
        "backbone": {"name": "tiny"},
        "institutions": [
            {"name": NAME, "data": {TASK: spec}, "policy": dict(case.policy)},
            {"name": "south", "data": {OTHER: {"reader": "phantom", "phantom": OTHER, "images": 12}}},
        ],
    }
    return Scenario.model_validate(table | dict(case.settings))


@dataclass(frozen=True)
class Seen:
    """What a run of an institution shows to a test.

    totals: every sum just before its noise, with the square of the largest norm that one unit may have, and
        the value of one step.
    noisy: the same after the noise.
    left: every answer, by its place in the run. counts: what it declares.
    """

    totals: dict[Place, tuple[NDArray[np.int64], int, float]] = field(default_factory=dict)
    noisy: dict[Place, NDArray[np.int64]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    spends: list[tuple[Any, ...]] = field(default_factory=list)
    counts: dict[tuple[str, SplitPart], Units] = field(default_factory=dict)
    holdings: dict[str, Holding] = field(default_factory=dict)


class Tape(NoiseSource):
    """The same coins; it writes down what it gets, and plays what another run got."""

    def __init__(self, coins: NoiseSource, place: Place, seen: Seen, played: Seen | None) -> None:
        super().__init__(coins._secret)
        self.place, self.seen, self.played, self.sums = place, seen, played, 0

    def add_to(self, total_D: NDArray[np.int64], largest: int, grid: float) -> NDArray[np.int64]:
        place = (*self.place, self.sums)
        self.sums += 1
        noisy_D = super().add_to(total_D, largest, grid)
        if self.played is not None:
            noisy_D = self.played.noisy.get(place, noisy_D)
        self.seen.totals[place], self.seen.noisy[place] = (total_D.copy(), largest, grid), noisy_D
        return noisy_D


class Observed(Institution):
    """An institution that shows its sums, and declares the counts of another one."""

    def __init__(self, site: Site, scenario: Scenario, played: Seen | None) -> None:
        super().__init__(site, scenario, tiny_backbone())
        self.seen, self.played = Seen(), played

    def noise(self, job: Job, kind: str) -> NoiseSource:
        place = (kind, job.stage, job.round, job.task)
        return Tape(super().noise(job, kind), place, self.seen, self.played)

    def units(self, task: str, part: SplitPart) -> Units:
        own = super().units(task, part)
        self.seen.counts[task, part] = own
        if self.played is None:
            return own
        said = self.played.counts[task, part]
        return replace(own, images=said.images, counted=said.counted, count=said.count)

    def holdings(self) -> dict[str, Holding]:
        self.seen.holdings.update(super().holdings())
        return self.played.holdings if self.played is not None else dict(self.seen.holdings)


def run(case: Case, folder: Path, played: Seen | None = None) -> Seen:
    """All answers of an institution to the requests of a run of two stages."""
    write(case.dataset, case.reader, folder / "data")
    scenario = scenario_of(case, folder / "data")
    node = {"partition-id": 0, "num-partitions": 2}
    (site,) = hosted_sites(scenario, "run", node, {"out": str(folder / "out")})
    # The same place as the neighbour's: the two sites differ in their images alone.
    institution = Observed(site, scenario, played)
    for part in PARTS:
        institution.units(TASK, part)
    institution.holdings()
    last: list[AlignReply] = []
    for name, request in requests(case, institution, last):
        institution.seen.left[name] = checked(name, request, institution, last)
    institution.seen.spends.extend(
        (s.kind, s.task, s.split, s.unit, s.noise_multiplier, s.sample_rate, s.steps)
        for s in Ledger(site.ledger).lines()
    )
    return institution.seen


Asked = AlignRequest | RouterRequest | CalibrateRequest | EvaluateRequest


def requests(case: Case, institution: Institution, last: list[AlignReply]) -> Iterator[tuple[str, Asked]]:
    """The requests of a run by name, in their order. last: the layers so far."""
    rounds, spec = institution.scenario.training.rounds, institution.scenario.router

    def weights(number: int) -> Mapping[str, NDArray[np.float32]] | None:
        if number == 1 or last:
            return last[-1].layer if number > 1 else None
        return {name: value.numpy() for name, value in institution.layer(TASK, None).state_dict().items()}

    def evaluation(stage: int, known: int, tasks: Sequence[str]) -> EvaluateRequest:
        bank = shared_bank(spec.kind)
        entries = [bank.bytes_of(task) for task in tasks[known:]]
        return EvaluateRequest(
            Job(NAME, stage), known, entries, bank.digest_over(tasks), tuple(tasks[known:])
        )

    yield "evaluate 0", evaluation(0, 0, ())
    for number in range(1, rounds + 1):
        yield f"align {number}", AlignRequest(Job(NAME, 1, TASK, number), weights(number))
    job = Job(NAME, 1, TASK)
    yield "router", RouterRequest(job, alone=case.alone)
    if not case.alone and spec.kind == "gaussian":
        yield "calibrate", CalibrateRequest(job, [shared_bank(spec.kind)[TASK].router] * spec.folds)
    yield "evaluate 1", evaluation(1, 0, (TASK,))
    yield "evaluate 2", evaluation(2, 1, (TASK, OTHER))


def answered(request: Asked, institution: Institution, last: list[AlignReply]) -> Message:
    """The answer. Raises RefusalError."""
    if isinstance(request, AlignRequest):
        last.append(permission.align(institution, request))
        return last[-1]
    if isinstance(request, RouterRequest):
        return permission.describe(institution, request)
    if isinstance(request, CalibrateRequest):
        return permission.calibrate(institution, request)
    return permission.evaluate(institution, request)


def checked(name: str, request: Asked, institution: Institution, last: list[AlignReply]) -> str:
    """What leaves: a digest of the answer and of the account, or one word.

    The guard lets every honest answer pass: else equal words would hide what differs.
    """
    try:
        content = answered(request, institution, last).to_payload()
        account = account_of(institution)
        payload = with_outcome(content, account.settings() if account else {})
        asked = request.to_payload().config
        check(REPLY_TO[type(request)].kind, payload, institution, request.job, asked)
    except CasamError as error:
        word, reason = outcome_of(error), str(error)
    else:
        return digest_of(payload)
    assert word != Outcome.NOT_ALLOWED, f"{name}: {reason}"
    return word.value


@lru_cache
def shared_bank(kind: str) -> Bank:
    """The bank that the server sends, made by others with this kind of router.

    Both routers know similar pictures and no image is unknown to them, so every image is routed to one of
    the two, and new entries claim images.
    """
    bank = Bank.open(Path(tempfile.mkdtemp()) / "bank", create=True)
    spec, backbone = router_spec(kind).completed(BackboneSpec(name="tiny")), tiny_backbone()
    router = build_router(spec)
    for stage, task in enumerate((TASK, OTHER), 1):
        z_BCHW = backbone.encode([picture(TASK, i) for i in range(100 * stage, 100 * stage + 12)])
        f_NF = torch.stack([pool(z_CHW, spec.features) for z_CHW in z_BCHW])
        state = router.fit(router.sufficient_statistics(f_NF, 0))
        entry = tiny_entry(task)
        about = replace(entry.provenance, stage=stage, router=kind, frame=frame_named(spec))
        bank.add(replace(entry, router=dict(state), threshold=1e6, provenance=about))
    return bank


def differences(one: Seen, other: Seen, changed: set[str], replaced: bool) -> list[str]:
    """Everything in which the neighbour differs by more than the claim; empty if the claim holds.

    A unit may move the sums that are paid for its own split; it must not move any other sum at all.

    changed: the units that only one of the two has, or that differ.
    """
    found = []
    if one.left != other.left:
        names = sorted(n for n in one.left.keys() | other.left.keys() if one.left.get(n) != other.left.get(n))
        found.append(f"without noise, {', '.join(names)} differ")
    if one.spends != other.spends:
        found.append("the ledgers differ")
    if one.totals.keys() != other.totals.keys():
        found.append("noise is added in other places")
    paid = {kind: (split, noise) for kind, _, split, _, noise, _, _ in one.spends}
    touched = parts_of(one, changed) | parts_of(other, changed)
    for place in one.totals.keys() & other.totals.keys():
        (before, largest, grid), (after, same, same_grid) = one.totals[place], other.totals[place]
        split, noise = paid[str(place[0])]
        if largest != same or largest > SIGMA**2 / Fraction(noise) ** 2:
            found.append(f"{place}: the sensitivity is not the one that was paid for")
        if grid != same_grid:
            found.append(f"{place}: the scale of the noise depends on the images")
        moved = sum(int(x) ** 2 for x in before - after)
        if split not in touched and moved:
            found.append(f"{place}: a unit of another split moved the sum")
        if moved > (4 if replaced else 1) * largest:
            found.append(f"{place}: one unit moved the sum by {(moved / largest) ** 0.5:.2f} x its norm")
    return found


def parts_of(seen: Seen, names: set[str]) -> set[str]:
    """The splits that hold one of these units."""
    return {
        part
        for (_, part), units in seen.counts.items()
        for unit in units
        if unit.name.split(" ", 1)[1].split("_")[0] in names
    }
