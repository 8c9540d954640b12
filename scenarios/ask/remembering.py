"""What a finished run already computed, for answers to questions about it: RUN/ask.

    RUN/ask/<digest>/<institution>/   known results, under everything they depend on (`world`)
        routes.jsonl   the nearest entry of an image so far
        masks.jsonl    mask scores by image and layer: a new router under an old layer decodes nothing
        keys.json      names of the stored embeddings, so that no image is read to learn them
        trained/       layers, as client/simulation/kept_training.py keeps them

It begins with the private files of the run's institutions, so it exists only where a simulation ran, and it
grows with every question. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.scenario import Scenario
from casam_core.files import make_folder, read_records, write_atomic
from client.client_app import MADE_AS
from client.evaluation.evaluator import MASKS, ROUTES, Evaluator, Measured
from client.evaluation.own_entries import KnownEntries
from client.evaluation.results import Results
from client.institution import Institution

FOLDER = "ask"


def layer_digest(entry: Entry) -> str:
    """SHA-256 of an entry's form and weights: what a mask depends on, without the router."""
    digest = hashlib.sha256(entry.provenance.form.encode())
    for name, array in sorted(entry.layer.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class ByLayer(Results):
    """Mask scores by (image, layer), asked for by (image, entry). layers: the layer of each entry."""

    def __init__(self, path: Path, layers: dict[str, str]) -> None:
        super().__init__(path)
        self.layers = layers

    def get(self, image: str, entry: str) -> Any | None:
        """The value under the entry's layer, or None."""
        return super().get(image, self.layers.get(entry, entry))

    def put(self, image: str, entry: str, value: Any) -> None:
        """Keep a value under the entry's layer."""
        super().put(image, self.layers.get(entry, entry), value)


@dataclass
class SiteMemory:
    """The memory of one institution."""

    folder: Path
    routes: Results
    masks: ByLayer

    @staticmethod
    def at(folder: Path) -> SiteMemory:
        """Open it, or begin an empty one."""
        make_folder(folder, 0o700)
        return SiteMemory(folder, Results(folder / ROUTES), ByLayer(folder / MASKS, {}))

    @property
    def trained(self) -> Path:
        """Folder of trained layers."""
        return self.folder / "trained"

    def keys(self, task: str) -> dict[str, str]:
        """Known names of the embeddings of a task's images."""
        return dict(self._all_keys().get(task, {}))

    def keep_keys(self, by_task: Mapping[str, Mapping[str, str]]) -> None:
        """Remember the names of embeddings."""
        known = self._all_keys()
        new = {task: {**known.get(task, {}), **keys} for task, keys in by_task.items()}
        if new != known:
            write_atomic(self.folder / "keys.json", json.dumps(known | new).encode())

    def _all_keys(self) -> dict[str, dict[str, str]]:
        path = self.folder / "keys.json"
        content: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        return content


class KnowsScores(Institution):
    """An institution that knows scores of earlier runs: of an image under an entry, of masks under a layer.

    memories: by institution; set on a subclass (client.client_app.MADE_AS).
    """

    memories: Mapping[str, SiteMemory]

    @property
    def memory(self) -> SiteMemory:
        """What this institution knows."""
        return self.memories[self.name]

    def measured(self, known: KnownEntries, evaluator: Evaluator | None = None) -> dict[str, Measured]:
        """As ever; masks are found by the layer of the entry that answers."""
        layers = self.memory.masks.layers
        for head in known.heads:
            if (digest := known.digest_of(head.task)) not in layers:
                layers[digest] = layer_digest(known[head.task])
        return super().measured(known, evaluator)

    def evaluator(self) -> Evaluator:
        """An evaluator whose results are those of the memory."""
        made = super().evaluator()
        made.routes, made.masks = self.memory.routes, self.memory.masks
        return made


@contextlib.contextmanager
def scores_shared(folder: Path, scenario: Scenario) -> Iterator[None]:
    """In-process runs in this context keep their scores in `folder`, and know those of earlier runs there.

    Every layer is still trained, so the seconds of learning are those of the run alone.
    """

    class Shared(KnowsScores):
        pass

    Shared.memories = {
        site.name: SiteMemory.at(folder / world(scenario, site.name) / site.name)
        for site in scenario.institutions
    }
    token = MADE_AS.set(Shared)
    try:
        yield
    finally:
        MADE_AS.reset(token)


def world(scenario: Scenario, name: str) -> str:
    """Digest of what an institution's scores of an image under an entry depend on."""
    about = scenario.model_dump(mode="json", include={"seed", "evaluation", "backbone", "compute", "router"})
    data = scenario.institution(name).model_dump(mode="json", include={"data"})
    return hashlib.sha256(json.dumps([about, data], sort_keys=True).encode()).hexdigest()[:16]


def memory_of(run: Path, old: Scenario, new: Scenario) -> dict[str, SiteMemory]:
    """By institution of `new`, what is known about it from the run of `old` and from earlier questions."""
    kept = {site.name for site in old.institutions}
    layers = layers_in(run / "bank")
    found = {}
    for site in new.institutions:
        folder = run / FOLDER / world(new, site.name) / site.name
        fresh = not folder.exists()
        found[site.name] = SiteMemory.at(folder)
        if fresh and site.name in kept and folder.parent.name == world(old, site.name):
            take_over(run / "institutions" / site.name / "private", found[site.name], layers)
    return found


def take_over(private: Path, memory: SiteMemory, layers: Mapping[str, str]) -> None:
    """Begin the memory of an institution with its files of the run."""
    for record, _ in read_records(private / ROUTES):
        memory.routes.put(*record)
    keys: dict[str, dict[str, str]] = {}
    for (image, entry, value), _ in read_records(private / MASKS):
        memory.masks.put(image, layers.get(entry, entry), value)
        task, sample, key = split_name(image)
        keys.setdefault(task, {})[sample] = key
    memory.keep_keys(keys)
    if (private / "trained").is_dir():
        shutil.copytree(private / "trained", memory.trained, copy_function=os.link, dirs_exist_ok=True)


def split_name(image: str) -> tuple[str, str, str]:
    """(task, sample, key of its embedding) of a name in masks.jsonl."""
    task, _, rest = image.partition("/")
    sample, _, key = rest.rpartition("/")
    return task, sample, key


def layers_in(banks: Path) -> dict[str, str]:
    """By digest of an entry, the digest of its layer, for every bank in a folder."""
    found: dict[str, str] = {}
    for manifest in sorted(banks.rglob("manifest.json")):
        bank = Bank.open(manifest.parent)
        found |= {bank.digest_of(entry.task): layer_digest(entry) for entry in bank}
    return found
