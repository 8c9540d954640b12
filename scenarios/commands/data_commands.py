"""`casam data`: check an institution's images before a run. Everything stays on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from casam_core.errors import DataError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from casam_core.config.data_spec import DataSpec
    from casam_core.config.scenario import Scenario
    from scenarios.inspection.survey import Survey

data_app = typer.Typer(no_args_is_help=True, help="Check and preview an institution's images.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The dataset's folder.")]
OfReader = Annotated[
    str | None,
    typer.Option("--reader", help="A reader of docs/scenario.md. Default: guessed from the folder's files."),
]
OfLabels = Annotated[
    str | None,
    typer.Option("--labels", help="What a mask's values are: instances or classes. Default: instances."),
]
OfGroups = Annotated[
    str | None,
    typer.Option("--group-pattern", help="Regular expression that finds the patient or slide in a name."),
]
OfAxis = Annotated[int, typer.Option("--slice-axis", help="Axis across the slices (nifti).")]
OfWindow = Annotated[
    str | None,
    typer.Option("--window", metavar="CENTRE,WIDTH", help="Intensities to show (nifti and dicom)."),
]
OfAnnotations = Annotated[
    str | None, typer.Option("--annotations", help="Annotation file inside the folder (coco).")
]
OfPseudo = Annotated[
    bool, typer.Option("--pseudo-masks", help="Read imask for training images (med_datasets).")
]


@data_app.command()
def check(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="The dataset's folder.")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Check every dataset of this scenario instead of one folder.")
    ] = None,
    site_file: Annotated[
        Path | None,
        typer.Option("--site", help="Check every dataset of this site file instead of one folder."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Base folder of relative data paths (--scenario and --site).")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="The site's home, whose split.key divides the images (--site). Default: as a node."
        ),
    ] = None,
    reader: OfReader = None,
    labels: OfLabels = None,
    group_pattern: OfGroups = None,
    slice_axis: OfAxis = 2,
    window: OfWindow = None,
    annotations: OfAnnotations = None,
    pseudo_masks: OfPseudo = False,
    seed: Annotated[int, typer.Option(help="Seed of the split that is checked (DIR only).")] = 0,
) -> None:
    """Read every image, print a summary of each dataset, then all faults.

    For example: casam data check images/nuclei, or: casam data check --scenario quickstart, or:
    casam data check --site site.toml --data-root /data

    Exit status: 0 no faults, 1 faults, 2 bad input.
    """
    if sum(given is not None for given in (directory, scenario, site_file)) != 1:
        raise ScenarioError(
            "casam data check: expected one of DIR, --scenario and --site, found several or none"
        )
    screen = _console()
    options = (reader, labels, group_pattern, slice_axis, window, annotations, pseudo_masks)
    if directory is not None:
        if data_root is not None:
            raise ScenarioError(
                "casam data check: expected --data-root with --scenario or --site only; leave it out"
            )
        must_exist(directory)
        spec = spec_of(directory, *options)
        surveys = {("here", directory.resolve().name): _survey(spec, None, seed, "here", "data", screen)}
    else:
        if options != (None, None, None, 2, None, None, False) or seed != 0:
            raise ScenarioError(
                "casam data check: expected no reader option with --scenario or --site, which name their "
                "readers; leave it out"
            )
        surveys = (
            _survey_scenario(_resolve(str(scenario)), data_root, screen)
            if site_file is None
            else _survey_site(site_file, data_root, home, screen)
        )
    faults: list[str] = []
    for (site, task), found in surveys.items():
        name = task if directory is not None else f"{site}: {task}"
        _print_table(name, found, screen)
        faults.extend(f"{name}: {fault}" for fault in found.faults)
    faults.extend(_leaks(surveys))
    for fault in faults:
        typer.echo(f"FAULT {fault}")
    typer.echo(f"{len(faults)} fault{'s' if len(faults) != 1 else ''}")
    if faults:
        raise typer.Exit(1)


@data_app.command()
def preview(
    directory: Folder,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures, mode 0700. Default: in the institution's own folder."),
    ] = None,
    institution: Annotated[
        str, typer.Option(help="The institution that holds the images; part of the default folder's path.")
    ] = "local",
    count: Annotated[int, typer.Option(min=1, help="How many images, spread over the dataset.")] = 12,
    reader: OfReader = None,
    labels: OfLabels = None,
    group_pattern: OfGroups = None,
    slice_axis: OfAxis = 2,
    window: OfWindow = None,
    annotations: OfAnnotations = None,
    pseudo_masks: OfPseudo = False,
) -> None:
    """Draw images with the outlines of their labels. The last line printed is the folder.

    For example: casam data preview images/nuclei --count 6
    """
    from casam_core.config.scenario import RUN_NAME
    from casam_core.files import casam_home
    from client.data.open import open_dataset
    from client.data.preview import draw_previews

    must_exist(directory)
    if not RUN_NAME.fullmatch(institution):
        raise ScenarioError(
            f"--institution: expected letters, digits, '.', '_' and '-', found {institution!r}; rename it"
        )
    spec = spec_of(directory, reader, labels, group_pattern, slice_axis, window, annotations, pseudo_masks)
    own = casam_home() / "institutions" / institution / "previews" / (directory.resolve().name or "data")
    folder = out.expanduser() if out else own
    with _progress(_console(), "drawing") as show:
        dataset = open_dataset(spec, data_root=None, seed=0, institution=institution)
        draw_previews(dataset, folder, count=count, progress=show)
    typer.echo(str(folder.resolve()))


def must_exist(directory: Path) -> None:
    """Raise DataError if there is no such folder."""
    if not directory.expanduser().is_dir():
        raise DataError(f"{directory}: expected a folder with images, found none; correct the path")


def _leaks(surveys: dict[tuple[str, str], Survey]) -> Iterator[str]:
    """Images that one institution trains on and another institution tests on."""
    from scenarios.inspection.survey import leaks_between

    for task in dict.fromkeys(task for _, task in surveys):
        holders = {site: found for (site, held), found in surveys.items() if held == task}
        yield from (f"{task}: leakage: {fault}" for fault in leaks_between(holders))


def spec_of(
    directory: Path,
    reader: str | None,
    labels: str | None,
    group_pattern: str | None,
    slice_axis: int,
    window: str | None,
    annotations: str | None,
    pseudo_masks: bool,
) -> DataSpec:
    """The options of the command as a scenario would write them. Raises ScenarioError."""
    from casam_core.config.data_spec import DataSpec
    from casam_core.config.toml import explain

    folder = directory.expanduser().resolve()
    table: dict[str, Any] = {
        "reader": reader or guess_reader(folder),
        "path": str(folder),
        "group_pattern": group_pattern,
        "slice_axis": slice_axis,
        "window": window.split(",") if window is not None else None,
        "pseudo_masks": pseudo_masks,
    }
    table |= {k: v for k, v in (("labels", labels), ("annotations", annotations)) if v is not None}
    try:
        return DataSpec.model_validate(table)
    except ValidationError as error:
        raise ScenarioError(f"casam data: {explain(error)}") from error


def guess_reader(folder: Path) -> str:
    """The reader that fits the files of `folder`; the reader "folder" if no other one fits."""
    from client.data.listing import is_folder, visible_entries

    if not is_folder(folder):
        return "folder"  # whose message says what is missing
    if (folder / "dataset.json").is_file():
        return "med_datasets"
    if (folder / "annotations.json").is_file():
        return "coco"
    if (folder / "labels").is_dir() and not (folder / "masks").exists():
        return "yolo"
    entries = visible_entries(folder / "images") if is_folder(folder / "images") else []
    if any(entry.name.lower().endswith((".nii", ".nii.gz")) for entry in entries):
        return "nifti"
    if entries and all(entry.is_dir() for entry in entries):
        return "dicom"
    return "tiff_stack" if _is_stack(entries) else "folder"


def _is_stack(entries: list[Path]) -> bool:
    import tifffile

    first = next((entry for entry in sorted(entries) if entry.suffix.lower() in (".tif", ".tiff")), None)
    if first is None:
        return False
    try:
        with tifffile.TiffFile(first) as file:
            return len(file.pages) > 1
    except (tifffile.TiffFileError, OSError, ValueError):
        return False  # the reader will say what is wrong with it


def _resolve(scenario: str) -> Scenario:
    from casam_core.config.library import resolve_scenario

    return resolve_scenario(scenario)


def _survey_scenario(
    scenario: Scenario, data_root: Path | None, screen: Console
) -> dict[tuple[str, str], Survey]:
    return {
        (site.name, task): _survey(spec, data_root, scenario.seed, site.name, task, screen)
        for site in scenario.institutions
        for task, spec in site.data.items()
    }


def _survey_site(
    file: Path, data_root: Path | None, home: Path | None, screen: Console
) -> dict[tuple[str, str], Survey]:
    """Every task of a site file, divided by the site's own key."""
    from casam_core.config.site_file import read_site_file
    from casam_core.files import casam_home
    from client.data.splits import kept_key

    key = kept_key(home.expanduser() if home else casam_home())
    surveys = {}
    for task, spec in read_site_file(file).tasks.items():
        found = surveys["here", task] = _survey(spec, data_root, spec.seed, "here", task, screen, key)
        for part, least in spec.minimum:
            if found.parts and found.parts[part] < least:
                found.faults.append(
                    f"minimum.{part}: expected {least} images or more, found {found.parts[part]}; nothing of "
                    f"this task would leave, so add images or lower the minimum"
                )
    return surveys


def _survey(
    spec: DataSpec,
    data_root: Path | None,
    seed: int,
    institution: str,
    task: str,
    screen: Console,
    key: bytes | None = None,
) -> Survey:
    """key: the site's key for splits; by default the simulation's."""
    from client.data.open import open_dataset
    from client.data.splits import simulated_key
    from scenarios.inspection.survey import survey

    with _progress(screen, f"{institution}: {task}") as show:
        return survey(
            lambda: open_dataset(spec, data_root=data_root, seed=seed, institution=institution),
            spec,
            key=key or simulated_key(seed, institution),
            scope=f"{institution}/{task}",
            progress=show,
        )


def _print_table(name: str, found: Survey, screen: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "found", title=escape(name), title_justify="left")
    groups = f"{found.groups}" + (f" ({found.ungrouped} images without)" if found.ungrouped else "")
    rows = {
        "images": f"{found.images}, {len(found.sides)} readable",
        "excluded, no label": str(found.empty),
        "groups": groups,
        "train / val / test": " / ".join(str(count) for count in found.parts.values()) or "no split",
        "sizes": found.size_range,
        "kinds": ", ".join(f"{kind}: {count}" for kind, count in found.kinds.most_common()) or "none read",
        "instances per image": found.instance_range,
        "duplicates": str(len(found.duplicates)),
        "faults": str(len(found.faults)),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    screen.print(table)
    for warning in found.warnings:
        typer.echo(f"note  {warning}")


@contextmanager
def _progress(screen: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    with screen.status(f"{name}: opening") as status:
        yield lambda done, total: status.update(f"{name}: {done} of {total}")


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)
