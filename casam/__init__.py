"""casam from Python: run a scenario, read its results, use its bank, register your own parts.

    import casam

    run = casam.run("quickstart", set={"training.epochs": 3}, on_event=print)
    run.summary.last_iou                      # every figure of summary.json, typed
    bank = casam.load_bank(run.bank)          # what was learned

A finished bank in a few lines (docs/using-a-bank.md):

>>> import numpy as np
>>> from PIL import Image
>>> from casam import Segmenter, backbone_for, load_bank
>>> bank = load_bank("bank")
>>> segmenter = Segmenter(backbone_for(bank), bank)
>>> image = np.asarray(Image.open("image.png").convert("RGB"))
>>> prediction = segmenter.predict(image, [(8, 8, 40, 40)])
>>> prediction.name  # the route: a task of the bank, or identity
'polyp'
>>> prediction.masks_NHW.shape == (1, *image.shape[:2])
True
>>> z_BCHW = segmenter.embed(image)  # or step by step
>>> bank.route(z_BCHW)[0].nearest
'polyp'
>>> bank["polyp"].layer(z_BCHW).shape == z_BCHW.shape
True

The `casam` command does the same from a shell; docs/python.md has an example of every function.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from casam_core.config.scenario import Scenario
    from casam_core.methods import Method
    from casam_core.model.backbones import Backbone, BackboneEntry
    from casam_core.model.forms import AlignmentLayer, FormEntry
    from casam_core.routing.routers import RouterEntry
    from casam_use.loaded_bank import LoadedBank, LoadedEntry, load_bank
    from casam_use.segmenter import Prediction, Segmenter, backbone_for
    from client.data.open import Opener
    from server.run.summary_schema import Summary

# Loaded at first use: the import of torch takes seconds, and `import casam` must be fast.
_HOMES = {
    "LoadedBank": "casam_use.loaded_bank",
    "LoadedEntry": "casam_use.loaded_bank",
    "load_bank": "casam_use.loaded_bank",
    "Prediction": "casam_use.segmenter",
    "Segmenter": "casam_use.segmenter",
    "backbone_for": "casam_use.segmenter",
    "BackboneEntry": "casam_core.model.backbones",
    "FormEntry": "casam_core.model.forms",
    "Method": "casam_core.methods",
    "RouterEntry": "casam_core.routing.routers",
    "Scenario": "casam_core.config.scenario",
    "Summary": "server.run.summary_schema",
}

__all__ = [
    "BackboneEntry",
    "FormEntry",
    "LoadedBank",
    "LoadedEntry",
    "Method",
    "Prediction",
    "RouterEntry",
    "Run",
    "Scenario",
    "Segmenter",
    "Summary",
    "backbone_for",
    "load_backbone",
    "load_bank",
    "load_run",
    "register_backbone",
    "register_form",
    "register_method",
    "register_reader",
    "register_router",
    "run",
    "train_layer",
]

Event = dict[str, Any]
"""One line of a run's events.jsonl (docs/run-folder.md)."""

POLL_SECONDS = 0.1


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder (docs/run-folder.md).
        summary: the content of summary.json.
    """

    folder: Path
    summary: Summary

    @property
    def bank(self) -> Path:
        """The folder of the learned bank, for `load_bank`; of one layer for all tasks, of the last stage."""
        from casam_use.run_bank import bank_of_run

        return bank_of_run(self.folder)

    def events(self) -> Iterator[Event]:
        """The events of the run, in order."""
        from scenarios.engines.watch import Events

        yield from Events(self.folder / "events.jsonl").new()

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of this run, by default report.html in its folder. Needs the extra `report`."""
        from casam_core.files import write_atomic
        from scenarios.report.page import page
        from scenarios.report.reading import read_all

        target = Path(path) if path else self.folder / "report.html"
        write_atomic(target, page(read_all([self.folder]), full=True).encode())
        return target


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    engine: Literal["inprocess", "simulation"] = "inprocess",
    on_event: Callable[[Event], None] | None = None,
    verbose: bool = False,
) -> Run:
    """Run a scenario and return when it has ended.

    Args:
        scenario: a name of the library, a path to a TOML file, a table, or a Scenario.
        data_root: the folder that relative data paths start from.
        out: the run folder, new or empty; by default runs/<scenario>-<time>.
        set: keys to change, e.g. `{"training.epochs": 3}`.
        engine: inprocess, or simulation: a real `flwr run` on this machine. The numbers are the same.
        on_event: called with every event when it happens, in a separate thread. If it raises, `run` raises
            the same error at the end.
        verbose: print what `casam run` prints.

    Raises:
        CasamError: a fault in the scenario, the data or the run; the text says what to do.
    """
    from rich.console import Console

    from casam_core.errors import ScenarioError
    from scenarios.engines import Engine
    from scenarios.engines.order import RunOrder, choose_folder
    from scenarios.engines.run import run_scenario

    if engine not in (known := [one.value for one in Engine]):
        raise ScenarioError(f"engine: expected {' or '.join(known)}, found {engine!r}; correct it")
    resolved = scenario_of(scenario, set or {})
    folder = choose_folder(resolved, Path(out) if out else None)
    order = RunOrder(Engine(engine), Path(data_root) if data_root else None, folder)
    with followed(folder / "events.jsonl", on_event):
        run_scenario(resolved, order, Console(quiet=not verbose, markup=False))
    return load_run(folder)


def load_run(folder: str | Path) -> Run:
    """The finished run in `folder`. Raises RunError if there is none."""
    from server.run.summary_schema import read_summary

    path = Path(folder).expanduser().resolve()
    return Run(path, read_summary(path))


def scenario_of(scenario: Scenario | str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> Scenario:
    """The scenario with some keys changed. Raises ScenarioError."""
    from casam_core.config.library import scenario_path
    from casam_core.config.scenario import Scenario
    from casam_core.config.toml import read_table, set_key
    from casam_core.errors import ScenarioError

    if isinstance(scenario, Scenario):
        table: dict[str, Any] = scenario.model_dump(mode="json")
    elif isinstance(scenario, Mapping):
        table = copy.deepcopy(dict(scenario))
    else:
        table = read_table(scenario_path(str(scenario)), "scenario", ScenarioError)
    for key, value in changes.items():
        set_key(table, key, value, f"set {key}")
    return Scenario.from_dict(table)


def train_layer(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.int32]],
    backbone: Backbone,
    *,
    form: str = "low_rank",
    epochs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AlignmentLayer:
    """Train one Alignment Layer on your own images, as an institution does.

    Args:
        images: uint8 RGB of shape (height, width, 3), of any size.
        labels: whole numbers of shape (height, width); 0 is background, every other value is one instance.
        backbone: frozen (`load_backbone`).
        form: a name in casam_core.config.named_parts.FORMS whose layer is between encoder and decoder.
        epochs: passes over the images; by default as many as make about 240 steps.
        seed: the same seed gives the same bits.
        progress: called with (steps done, all steps).

    Returns:
        The layer, which maps z_BCHW to z_BCHW.

    Raises:
        ValueError: the numbers of images and labels differ.
        PromptError: an image is not uint8 RGB.
        DataError: labels are not whole numbers, have another size than their image, or hold no instance.
        ScenarioError: an unknown form, one that changes SAM itself, or epochs below 1.
        RunError: a loss or a weight is no longer finite.
    """
    from pydantic import ValidationError

    from casam.given import examples_of
    from casam_core.config.scenario import TrainingSpec
    from casam_core.config.toml import explain
    from casam_core.errors import ScenarioError
    from casam_core.model import training
    from casam_core.model.forms import build_layer, changes_sam, form_spec, learning_rate_of
    from casam_core.seeding import numpy_generator

    spec = form_spec(form, {})
    learning_rate = learning_rate_of(spec)
    if changes_sam(form):
        raise ScenarioError(
            f"form: expected a layer between encoder and decoder, found {form!r}, which changes SAM itself; "
            "name another"
        )
    try:
        settings = TrainingSpec(epochs=epochs)
    except ValidationError as error:
        raise ScenarioError(f"training: {explain(error)}") from error
    layer = build_layer(spec, backbone.geometry.channels, seed)
    training.train_layer(
        layer,
        backbone,
        examples_of(images, labels, backbone),
        settings,
        learning_rate=learning_rate,
        rng=numpy_generator(seed, "train_layer"),
        progress=progress,
    )
    return layer


def load_backbone(name: str = "lite_medsam", *, checkpoint: str | None = None, threads: int = 1) -> Backbone:
    """Load a frozen Segment Anything Model.

    Raises ScenarioError for an unknown name or not 1 to 256 threads, or CheckpointError.
    """
    from pydantic import ValidationError

    from casam_core.config.named_parts import BackboneSpec
    from casam_core.config.toml import explain
    from casam_core.errors import ScenarioError
    from casam_core.model import backbones
    from casam_use.segmenter import prepared

    try:
        spec = BackboneSpec(name=name, checkpoint=checkpoint)
    except ValidationError as error:
        raise ScenarioError(f"backbone: {explain(error)}") from error
    return backbones.load_backbone(spec, prepared("auto", threads))


def register_router(name: str, entry: RouterEntry) -> None:
    """Add a kind of router: `router = {kind = NAME}` (casam_core/routing/routers/base.py)."""
    from casam_core.config.named_parts import ROUTERS

    ROUTERS[name] = entry


def register_form(name: str, entry: FormEntry) -> None:
    """Add a form of Alignment Layer: `alignment = {form = NAME}` (casam_core/model/forms/__init__.py)."""
    from casam_core.config.named_parts import FORMS

    FORMS[name] = entry


def register_method(name: str, method: Method) -> None:
    """Add a method of continual learning: `method = NAME` (casam_core/methods.py)."""
    from casam_core.methods import METHODS

    METHODS[name] = method


def register_backbone(name: str, entry: BackboneEntry) -> None:
    """Add a frozen backbone: `backbone = {name = NAME}` (casam_core/model/backbones/base.py)."""
    from casam_core.config.named_parts import BACKBONES

    BACKBONES[name] = entry


def register_reader(name: str, reader: Opener) -> None:
    """Add a reader of a data format: `reader = NAME` in an institution's data (client/data/open.py)."""
    from casam_core.config.data_spec import READER_NAMES
    from client.data.open import READERS

    READERS[name] = reader
    if name not in READER_NAMES:
        READER_NAMES.append(name)


@contextlib.contextmanager
def followed(path: Path, on_event: Callable[[Event], None] | None) -> Iterator[None]:
    """During the block, call `on_event` with every line that is added to the file."""
    if on_event is None:
        yield
        return
    ended = threading.Event()
    faults: list[BaseException] = []

    def follow() -> None:
        told = 0
        while True:
            last = ended.wait(POLL_SECONDS)
            whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
            for line in whole[told:]:
                on_event(json.loads(line))
            told = len(whole)
            if last:
                return

    def safely() -> None:
        try:
            follow()
        except BaseException as fault:  # raised in the caller's thread, below
            faults.append(fault)

    thread = threading.Thread(target=safely, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if faults:
        raise faults[0]
