"""A benchmark is a function from its surroundings to named figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_type_hints

from rich.table import Column, Table

from casam_core.config.named_parts import BackboneSpec
from casam_core.config.scenario import ComputeSpec, Scenario

if TYPE_CHECKING:
    from casam_core.model.backbones import Backbone
    from casam_core.model.examples import Example
    from client.data.dataset import Dataset, Sample

Row = TypeVar("Row")

Figures = dict[str, float]
"""By name. A name contains the unit; without one, the figure is a share or a ratio."""


class Engines(Protocol):
    """Runs scenarios. scenarios/commands/bench_command.py implements it."""

    def inprocess(self, scenario: Scenario, folder: Path, workers: int = 1) -> None:
        """A complete run in this process, or in several, without output, into the run folder `folder`."""

    def simulation(self, scenario: Scenario, folder: Path) -> None:
        """The same by a real `flwr run`."""

    def begin(self, scenario: Scenario, folder: Path, data_root: Path | None) -> None:
        """A run that questions can be asked about, as `casam run` leaves it. Raises CasamError."""

    def ask(self, run: Path, settings: Sequence[str], seconds: float) -> dict[str, Any]:
        """What `casam ask RUN --json` prints within so many seconds, from a new process.

        Raises RunError with its last line where it gives no answer.
        """

    def changed_run(
        self, run: Path, settings: Sequence[str], folder: Path, draw: int
    ) -> dict[str, dict[str, float]]:
        """The IoU by institution and task that a full run with these settings releases after the last stage.

        It remembers nothing of `run`. draw: of the noise; 0 is the one of `casam run`. Raises CasamError.
        """

    def layer_library(
        self, backbone: Backbone, without: Collection[str], say: Callable[[str], None]
    ) -> bytes:
        """The file of a library of low_rank layers, made without the phantoms of these modalities."""

    def flower_app(
        self,
        app: Path,
        settings: Mapping[str, str | int | float | bool],
        nodes: int,
        say: Callable[[str], None],
    ) -> None:
        """Any Flower app by a real `flwr run`. say: called with each line of its output."""


@dataclass(frozen=True)
class Surroundings:
    """Settings of all benchmarks.

    home: folder of stored embeddings. images: maximum of training images per task, for a shorter run. say,
    show: print a line, a table. parts: folder
    in which a benchmark of several parts keeps each, to go on after an interruption. trace: folder for what a
    profiler saw. engines: run scenarios and Flower apps; this package imports no engine.
    smoke: small sizes only, for the regression guard. data_root: folder of real datasets, if any. seeds: of
    simulated disasters; 0: the benchmark's own number.
    """

    home: Path
    images: int
    threads: int
    say: Callable[[str], None]
    show: Callable[[Table], None]
    engines: Engines
    smoke: bool = False
    data_root: Path | None = None
    parts: Path | None = None
    trace: Path | None = None
    seeds: int = 0

    def lite_medsam(
        self,
        precision: Literal["float32", "auto"] = "float32",
        encoder: Literal["plain", "fast"] = "plain",
    ) -> Backbone:
        """The packaged backbone on this machine's CPU."""
        from casam_core.model.backbones import load_backbone
        from casam_core.model.compute import prepare_process, resolve_compute

        spec = ComputeSpec(device="cpu", threads=self.threads, precision=precision, encoder=encoder)
        compute = resolve_compute(spec)
        prepare_process(compute)
        return load_backbone(BackboneSpec(name="lite_medsam"), compute)

    def encoded(self, backbone: Backbone, dataset: Dataset, samples: Iterable[Sample]) -> list[Example]:
        """Images as training examples; their embeddings are stored and used again."""
        from casam_core.model.embeddings import EmbeddingStore
        from casam_core.model.examples import Example

        store, loaded = EmbeddingStore(self.home / "embeddings"), map(dataset.load, samples)
        return [Example(store.embed(item.image_HW3, backbone)[1], item.labels_HW) for item in loaded]


def table_of(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table without rows: the first `left` columns hold names, the others figures, at the right."""
    headers = (Column(name, justify="left" if at < left else "right") for at, name in enumerate(columns))
    return Table(*headers, title=title)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_of(kind: type[Row], rows: Iterable[Row]) -> str:
    """Rows of one dataclass, whose fields are words and numbers, as a CSV file."""
    text, made_so = io.StringIO(), fields(kind)  # type: ignore[arg-type]
    writer = csv.DictWriter(text, [field.name for field in made_so], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells: dict[str, Any] = asdict(row)  # type: ignore[call-overload]
        writer.writerow(cells)
    return text.getvalue()


def read_csv(kind: type[Row], path: Path) -> list[Row]:
    """The rows of a file that `csv_of` wrote."""
    types = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            kind(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Benchmark:
    """description: one line. run: prints its table and returns its figures. by_name: it takes hours or
    needs a card, so `--all` does not run it."""

    description: str
    run: Callable[[Surroundings], Figures]
    by_name: bool = False
