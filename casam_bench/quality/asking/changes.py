"""The questions: 32 about phantoms in seven scenarios of the library, 8 about three real sets.

Scenarios are small, so that a full run takes a minute of a processor. No image is left out by a limit: a
policy with noise refuses that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from casam_core.config.scenario import Scenario

SMALL = (
    "training.epochs=2",
    "training.batch_images=2",
    "training.instances=2",
    "evaluation.max_instances=3",
    "compute.encoder=fast",
    "compute.threads=1",
)
PHANTOMS = (
    "institutions.*.data.*.images=20",
    "institutions.*.data.*.limit={}",
    "institutions.*.data.*.split={val=0.15,test=0.3}",
)
REAL_SETS = {"dsb2018_fluorescence": 0.2, "dsb2018_histology_purple": 0.35, "wbc_jtsc": 0.2}
"""Folders in --data-root, and the share of their images that is used: about 24."""
DELTA = 0.05


@dataclass(frozen=True)
class Change:
    """One question. base: a scenario of the library, or REAL. settings: as for `casam ask --set`."""

    base: str
    name: str
    settings: tuple[str, ...]

    @property
    def kind(self) -> str:
        """phantom or real."""
        return "real" if self.base == REAL else "phantom"

    @property
    def slug(self) -> str:
        """Its name in file names."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.base} {self.name}".lower())


REAL = "real-sets"

OWN: dict[str, tuple[str, ...]] = {
    # Waiting is not what is measured: late answers become answers in time.
    "stragglers": (
        "institutions.pathology-annex.faults.delay=0",
        "institutions.pathology-lab.faults.slow_factor=1",
    ),
}
"""What else differs from the library's scenario."""


def scenario_of(base: str) -> Scenario:
    """The small scenario that a full run is made of before the first question."""
    if base == REAL:
        return Scenario.from_dict(real_table())
    return Scenario.load(base, [*SMALL, *PHANTOMS, *OWN.get(base, ())])


def real_table() -> dict[str, Any]:
    """Three institutions, a real set each."""
    sites = [
        {
            "name": folder.replace("_", "-"),
            "data": {task_of(folder): {"path": folder, "split": {"use": use, "val": 0.15, "test": 0.3}}},
        }
        for folder, use in REAL_SETS.items()
    ]
    return {
        "name": REAL,
        "stream": [task_of(folder) for folder in REAL_SETS],
        "training": {"epochs": 2, "batch_images": 2, "instances": 2},
        "evaluation": {"max_instances": 3},
        "compute": {"encoder": "fast", "threads": 1},
        "institutions": sites,
    }


def task_of(folder: str) -> str:
    """The task of a folder's images."""
    return folder.partition("_")[2]


def clauses(site: str, **values: str) -> tuple[str, ...]:
    """Settings of a site's policy; `__` stands for the dot of a clause within a clause."""
    return tuple(
        f"institutions.{site}.policy.{key.replace('__', '.')}={value}" for key, value in values.items()
    )


def private(site: str, epsilon: float, *parts: str) -> tuple[str, ...]:
    """Noise on what is learned: adapter, router, or both."""
    noisy = {f"{part}__noise": "dp" for part in parts or ("adapter", "router")}
    return clauses(site, **noisy, budget__epsilon=f"{epsilon:g}", budget__delta=f"{DELTA:g}")


def noisy_scores(site: str, epsilon: float) -> tuple[str, ...]:
    """Noise on what test images say."""
    return clauses(site, metrics="noisy", budget__epsilon_metrics=f"{epsilon:g}", budget__delta=f"{DELTA:g}")


SUM = {"adapter__aggregation": "secagg", "router__aggregation": "secagg"}

CHANGES = (
    Change("quickstart", "layer and router, epsilon 8", private("heart-centre", 8)),
    Change("quickstart", "layer and router, epsilon 3", private("heart-centre", 3)),
    Change("quickstart", "layer and router, epsilon 1", private("heart-centre", 1)),
    Change(
        "quickstart",
        "layer and router, epsilon 3, public start",
        (*private("pathology-lab", 3), "privacy.method=public_start"),
    ),
    Change("quickstart", "router, epsilon 3", private("endoscopy-centre", 3, "router")),
    Change("quickstart", "router, epsilon 1", private("pathology-lab", 1, "router")),
    Change("quickstart", "scores, epsilon 3", noisy_scores("heart-centre", 3)),
    Change("quickstart", "scores, epsilon 8, everywhere", noisy_scores("*", 8)),
    Change("quickstart", "no layer leaves", clauses("pathology-lab", adapter__share="never")),
    Change("quickstart", "no router leaves", clauses("heart-centre", router__share="never")),
    Change("small-and-large", "a large site leaves after stage 1", clauses("pathology-large", leaves_at="2")),
    Change("small-and-large", "secure sums of two", clauses("*", **SUM, minimum_cohort="2")),
    Change("small-and-large", "secure sums of three of two", clauses("*", **SUM, minimum_cohort="3")),
    Change("small-and-large", "a small site gives no layer", clauses("heart-small", adapter__share="never")),
    Change(
        "small-and-large", "a large site takes no entries", clauses("heart-large", accept_entries="false")
    ),
    Change("small-and-large", "quorum of two", ("participation.quorum=2",)),
    Change("late-joiner", "it joins at once", clauses("pathology-annex", joins_at="0")),
    Change("late-joiner", "another one joins later", clauses("endoscopy-centre", joins_at="2")),
    Change("late-joiner", "router of the late one, epsilon 3", private("heart-centre", 3, "router")),
    Change("withdrawal", "leaves and unlearns", clauses("endoscopy-centre", on_leave="unlearn")),
    Change("withdrawal", "leaves after stage 1", clauses("endoscopy-centre", leaves_at="2")),
    Change("withdrawal", "another one leaves, too", clauses("pathology-lab", leaves_at="3")),
    Change("withdrawal", "router, epsilon 8", private("pathology-lab", 8, "router")),
    Change(
        "refusal", "entries are taken", clauses("endoscopy-centre", accept_entries="true", metrics="exact")
    ),
    Change("refusal", "scores leave", clauses("endoscopy-centre", metrics="exact")),
    Change("refusal", "scores leave with noise", noisy_scores("endoscopy-centre", 3)),
    Change("poisoned-router", "nobody reports canaries", clauses("*", canaries="0")),
    Change("poisoned-router", "entries may claim nearly all", ("admission.canary_share=0.99",)),
    Change("poisoned-router", "scores, epsilon 3", noisy_scores("endoscopy-centre", 3)),
    Change("stragglers", "quorum of two", ("participation.quorum=2",)),
    Change("stragglers", "router, epsilon 3", private("endoscopy-centre", 3, "router")),
    Change("stragglers", "no training round", clauses("pathology-lab", max_rounds="0")),
    Change(REAL, "layer and router, epsilon 8", private("wbc-jtsc", 8)),
    Change(REAL, "layer and router, epsilon 3", private("dsb2018-fluorescence", 3)),
    Change(REAL, "layer and router, epsilon 1", private("wbc-jtsc", 1)),
    Change(REAL, "router, epsilon 3", private("dsb2018-histology-purple", 3, "router")),
    Change(REAL, "scores, epsilon 3", noisy_scores("wbc-jtsc", 3)),
    Change(REAL, "no router leaves", clauses("dsb2018-fluorescence", router__share="never")),
    Change(
        REAL, "one leaves after stage 2", clauses("dsb2018-fluorescence", leaves_at="3", on_leave="unlearn")
    ),
    Change(REAL, "one takes no entries", clauses("wbc-jtsc", accept_entries="false")),
)
