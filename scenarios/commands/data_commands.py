"""`casam data`: check an institution's images before a run. Everything stays on this machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from pydantic import ValidationError

from casam_core.errors import DataError, ScenarioError
from scenarios.commands.terminal import STOPPED, Json, print_json
from scenarios.printing import console, say

if TYPE_CHECKING:
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
    typer.Option("--labels", help="What mask values are: instances (default), classes or colours."),
]
OfGroups = Annotated[
    str | None,
    typer.Option("--group-pattern", help="Regular expression that finds the patient or slide in a name."),
]
OfImages = Annotated[
    str | None,
    typer.Option("--image-files", metavar="PATTERN", help="Names of the images, e.g. {patient}/{id}.*"),
]
OfMasks = Annotated[
    str | None,
    typer.Option("--mask-files", metavar="PATTERN", help="Names of the masks, e.g. {patient}/{id}_mask.*"),
]
OfKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY=VALUE",
        help="Another key of the data table (docs/scenario.md), e.g. --key 'window=[40, 400]'",
    ),
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
            help="`home` of node.toml, whose split.key divides the images (--site). Default: $CASAM_HOME."
        ),
    ] = None,
    reader: OfReader = None,
    image_files: OfImages = None,
    mask_files: OfMasks = None,
    labels: OfLabels = None,
    group_pattern: OfGroups = None,
    keys: OfKeys = None,
    seed: Annotated[int, typer.Option(help="Seed of the split that is checked (DIR only).")] = 0,
    json_: Json = False,
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
    screen = console(stderr=json_)
    notes: list[str] = []
    options = reader_options(reader, image_files, mask_files, labels, group_pattern, keys)
    spec: DataSpec | None = None
    if directory is not None:
        if data_root is not None:
            raise ScenarioError(
                "casam data check: expected --data-root with --scenario or --site only; leave it out"
            )
        must_exist(directory)
        spec = spec_of(directory, options, notes.append)
        surveys = {("here", directory.resolve().name): _survey(spec, None, seed, "here", "data", screen)}
    else:
        _refuse_reader_options([*options.values(), seed or None])
        surveys = (
            _survey_scenario(_resolve(str(scenario)), data_root, screen)
            if site_file is None
            else _survey_site(site_file, data_root, home, screen, notes)
        )
    named = {task if directory is not None else f"{site}: {task}": s for (site, task), s in surveys.items()}
    faults = [f"{name}: {fault}" for name, found in named.items() for fault in found.faults]
    faults.extend(_leaks(surveys))
    if json_:
        print_json(
            {
                "datasets": {name: _facts(found) for name, found in named.items()},
                "data": _written(spec) if spec else None,
                "notes": notes,
                "faults": faults,
            }
        )
    else:
        _tell(named, spec, notes, faults, screen)
    if faults:
        raise typer.Exit(1)


def _tell(
    named: Mapping[str, Survey],
    spec: DataSpec | None,
    notes: Sequence[str],
    faults: Sequence[str],
    screen: Console,
) -> None:
    """Print notes, a table for each dataset, the data table of a folder, and the faults."""
    for told in notes:
        note(told)
    for name, found in named.items():
        _print_table(name, found, screen, _understanding(spec) if spec else {})
    if spec is not None:
        say(screen, f"to change what was understood, write the data table: {_table_line(spec)}")
    for fault in faults:
        typer.echo(f"FAULT {fault}")
    typer.echo(f"{len(faults)} fault{'s' if len(faults) != 1 else ''}")


def _facts(found: Survey) -> dict[str, object]:
    """A survey for --json, without what identifies single images."""
    return {
        "images": found.images,
        "readable": len(found.sides),
        "excluded": found.empty,
        "groups": found.groups,
        "images_without_group": found.ungrouped,
        "parts": found.parts,
        "sizes": found.size_range,
        "kinds": dict(found.kinds),
        "instances": found.instance_range,
        "duplicates": len(found.duplicates),
        "faults": found.faults,
        "notes": found.warnings,
    }


def _refuse_reader_options(values: Sequence[object]) -> None:
    """Raise ScenarioError if a reader's option was given."""
    if any(value is not None for value in values):
        raise ScenarioError(
            "casam data check: expected no reader option with --scenario or --site, which name their "
            "readers; leave it out"
        )


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
    image_files: OfImages = None,
    mask_files: OfMasks = None,
    labels: OfLabels = None,
    group_pattern: OfGroups = None,
    keys: OfKeys = None,
) -> None:
    """Draw images with the outlines of their labels. The last line printed is the folder.

    For example: casam data preview images/nuclei --count 6
    """
    from casam_core.config.scenario import RUN_NAME
    from casam_core.files import casam_home
    from client.data.open import open_dataset
    from scenarios.inspection.survey import draw_previews

    must_exist(directory)
    if not RUN_NAME.fullmatch(institution):
        raise ScenarioError(
            f"--institution: expected letters, digits, '.', '_' and '-', found {institution!r}; rename it"
        )
    options = reader_options(reader, image_files, mask_files, labels, group_pattern, keys)
    spec = spec_of(directory, options)
    own = casam_home() / "institutions" / institution / "previews" / (directory.resolve().name or "data")
    folder = out.expanduser() if out else own
    with _progress(console(), "drawing") as show:
        dataset = open_dataset(spec, data_root=None, seed=0, institution=institution)
        draw_previews(dataset, folder, count=count, progress=show)
    typer.echo(str(folder.resolve()))


def reader_options(
    reader: str | None,
    image_files: str | None,
    mask_files: str | None,
    labels: str | None,
    group_pattern: str | None,
    keys: Sequence[str] | None,
) -> dict[str, Any]:
    """Keys of a data table from the options of a command; None where the person said nothing.

    keys: those of --key, with their values in TOML. Raises ScenarioError.
    """
    from casam_core.config.toml import apply_override

    table: dict[str, Any] = {
        "reader": reader,
        "image_files": image_files,
        "mask_files": mask_files,
        "labels": labels,
        "group_pattern": group_pattern,
    }
    for text in keys or ():
        apply_override(table, text)
    return table


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


def note(text: str) -> None:
    """Tell a fact that is no fault."""
    typer.echo(f"note  {text}")


def spec_of(directory: Path, options: Mapping[str, Any], tell: Callable[[str], None] = note) -> DataSpec:
    """The data table of a folder: what its files say, changed by the options. Raises CasamError.

    options: keys of a data table; None where the person said nothing. tell: called with each note.
    """
    from casam_core.config.data_spec import DataSpec
    from casam_core.config.toml import explain
    from scenarios.inspection.understand import understand

    folder = directory.expanduser().resolve()
    table: dict[str, Any] = {"reader": "folder", "path": str(folder)}
    given = {key: value for key, value in options.items() if value is not None}
    if "image_files" not in given and "reader" not in given:
        layout = understand(folder, a_person())
        table |= {"reader": layout.reader, **layout.keys}
        for told in layout.notes:
            tell(told)
    elif "image_files" not in given:
        with contextlib.suppress(DataError):  # the person named the reader; its own message says more
            layout = understand(folder)
            table |= layout.keys if layout.reader == given["reader"] else {}
    table |= given
    try:
        return DataSpec.model_validate(table)
    except ValidationError as error:
        raise ScenarioError(f"casam data: {explain(error)}") from error


def _understanding(spec: DataSpec) -> dict[str, str]:
    """How a folder is read, as rows of the table."""
    from client.data.file_patterns import several_masks
    from scenarios.inspection.named_files import ENDINGS

    rows = {"reader": spec.reader}
    if spec.reader in ENDINGS:
        images, masks = spec.patterns or ("images/{id}.*", "masks/{id}.*")
        if spec.list_file is not None:
            images = masks = f"listed in {spec.list_file}"
        said = "" if "labels" in spec.model_fields_set else " (the default; nothing says it)"
        rows |= {"image files": images, "mask files": masks}
        if spec.split_lists is not None:
            rows["lists of images"] = spec.split_lists
        meaning = MEANINGS[spec.labels]
        if "{class}" in masks and spec.labels == "instances":
            meaning = "each mask is a class, and each class of an image is one object"
        elif several_masks(masks) and "{class}" not in masks:
            meaning, said = "each mask is one object", ""
        rows["labels"] = f"{meaning}{said}"
    if spec.object_values is not None:
        rows["objects"] = f"mask values from {spec.object_values[0]} to {spec.object_values[1]}"
    return rows


def _written(spec: DataSpec) -> dict[str, object]:
    """The keys of the data table of a scenario or site file that says the same."""
    return {"reader": spec.reader} | spec.model_dump(mode="json", exclude_defaults=True)


def _table_line(spec: DataSpec) -> str:
    """The same in one line."""
    from scenarios.export.schema_pages import quoted

    written = _written(spec)
    return f"{{ {', '.join(f'{key} = {quoted(value)}' for key, value in written.items())} }}"


MEANINGS = {
    "instances": "each value above 0 is one object",
    "classes": "each connected part of a value is one object",
    "colours": "each connected part of a colour is one object; black is background",
}


def ask(lines: Sequence[str]) -> int:
    """Ask which understanding of a folder is right. Raises typer.Exit after Ctrl-C."""
    typer.echo("These files can be read in several ways:")
    for number, line in enumerate(lines, 1):
        typer.echo(f"  {number}  {line}")
    try:
        return int(typer.prompt("Which one", type=click.IntRange(1, len(lines)))) - 1
    except click.Abort as stop:
        raise typer.Exit(STOPPED) from stop


def a_person() -> Callable[[Sequence[str]], int] | None:
    """Who answers questions: a person at a terminal, or nobody."""
    return ask if sys.stdin.isatty() else None


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
    file: Path, data_root: Path | None, home: Path | None, screen: Console, notes: list[str]
) -> dict[tuple[str, str], Survey]:
    """Every task of a site file, divided by the site's own key."""
    from casam_core.config.site_file import read_site_file
    from casam_core.files import casam_home
    from client.data.splits import kept_key

    if home is None:
        notes.append("without --home the parts below are not the node's; name the `home` of node.toml")
    key = kept_key(home.expanduser() if home else casam_home())
    surveys = {}
    for task, spec in read_site_file(file).tasks.items():
        found = surveys["here", task] = _survey(spec, data_root, spec.seed, "this site", task, screen, key)
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


def _print_table(name: str, found: Survey, screen: Console, understood: Mapping[str, str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "found", title=escape(name), title_justify="left")
    groups = f"{found.groups}" + (f" ({found.ungrouped} images without)" if found.ungrouped else "")
    rows = {
        **understood,
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
