"""`casam scenarios`, `casam studies`, `casam schema` and `casam init`: list, show and write the files."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from casam_core.errors import ScenarioError
from scenarios.commands.data_commands import a_person
from scenarios.commands.terminal import Json, OfScenario, facts, listing, needs_folder, print_json

scenarios_app = typer.Typer(invoke_without_command=True, help="List the scenarios that come with casam.")
studies_app = typer.Typer(invoke_without_command=True, help="List the studies that come with casam.")

Again = Annotated[
    bool, typer.Option("--again", help="Make it again from phantoms and compare both (takes minutes).")
]


@scenarios_app.callback()
def scenarios(context: typer.Context, json_: Json = False) -> None:
    """List the scenarios that come with casam: minutes on two CPU cores, content, what to look at.

    Print one of them with: casam scenarios show quickstart
    """
    if context.invoked_subcommand is not None:
        return
    from casam_core.config.library import library_names, resolve_scenario

    found = [resolve_scenario(name) for name in library_names()]
    if json_:
        print_json(facts(found))
        return
    for line in listing(found):
        typer.echo(line)
    typer.echo("\nPrint one file: casam scenarios show NAME. Studies, which compare runs: casam studies")


@scenarios_app.command("show")
def show_scenario(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `casam scenarios` lists.")],
) -> None:
    """Print a scenario's file, to read it or to write your own from it.

    For example: casam scenarios show quickstart > mine.toml
    """
    from casam_core.config.library import scenario_path
    from casam_core.config.toml import read_table
    from casam_core.errors import ScenarioError

    path = scenario_path(name)
    read_table(path, "scenario", ScenarioError)
    typer.echo(path.read_text(), nl=False)


@scenarios_app.command("frame")
def show_frame(
    scenario: OfScenario,
    again: Again = False,
) -> None:
    """Print the public frame of a scenario's router; make it first if it is missing (takes minutes).

    For example: casam scenarios frame quickstart

    Exit status: 0; 1 if --again found another frame than the scenario's.
    """
    from casam_core.config.library import resolve_scenario
    from scenarios.engines.public.frame_making import about_frame, difference_to_a_new_one, with_frame

    framed = with_frame(resolve_scenario(scenario))
    print_public_file(about_frame(framed), partial(difference_to_a_new_one, framed) if again else None, 0.02)


@scenarios_app.command("library")
def show_library(
    scenario: OfScenario,
    again: Again = False,
) -> None:
    """Print the layer library of a scenario's private training; make it if it is missing (a minute or two).

    For example: casam scenarios library FILE

    Exit status: 0; 1 if --again found another library than the scenario's.
    """
    from casam_core.config.library import resolve_scenario
    from scenarios.engines.public.library_making import about_library, difference_to_a_new_one, with_library

    known = with_library(resolve_scenario(scenario), lambda line: typer.echo(line, err=True))
    print_public_file(about_library(known), partial(difference_to_a_new_one, known) if again else None, 0.1)


def print_public_file(
    about: Mapping[str, str], difference_to_a_new_one: Callable[[], float] | None, most: float
) -> None:
    """Print the facts about a public file; then make it again, if asked, and compare.

    Exits with 1 if the difference is larger than `most`.
    """
    for name, value in about.items():
        typer.echo(f"{name:<10} {value}")
    if difference_to_a_new_one is not None:
        difference = difference_to_a_new_one()
        typer.echo(f"{'again':<10} made again on this machine: differs by {difference:.2%}")
        if difference > most:
            raise typer.Exit(1)


@studies_app.callback()
def studies(context: typer.Context, json_: Json = False) -> None:
    """List the studies that come with casam: minutes on two CPU cores, content, what to look at."""
    if context.invoked_subcommand is not None:
        return
    from scenarios.study.study import STUDIES, read_study, study_names

    found = [read_study(STUDIES / f"{name}.toml") for name in study_names()]
    if json_:
        print_json(facts(found))
        return
    for line in listing(found):
        typer.echo(line)


@studies_app.command("show")
def show_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `casam studies` lists.")],
) -> None:
    """Print a study's file, to read it or to write your own from it.

    For example: casam studies show privacy-utility > mine.toml
    """
    from scenarios.study.study import read_study, study_path

    path = study_path(name)
    read_study(path)
    typer.echo(path.read_text(), nl=False)


class Kind(StrEnum):
    """Files that people write."""

    scenario = "scenario"
    policy = "policy"
    study = "study"


def schema(
    kind: Annotated[Kind, typer.Argument(help="The kind of file.")] = Kind.scenario,
) -> None:
    """Print the JSON Schema of a file, for completion and checks in an editor (docs/scenario-files.md).

    For example: casam schema scenario > scenario.schema.json
    """
    typer.echo(json.dumps(schema_of(kind), indent=2))


def schema_of(kind: Kind) -> dict[str, object]:
    """The schema by which casam reads the file. Rules that connect several keys are not part of it."""
    from casam_core.config.policy import Policy
    from casam_core.config.scenario import Scenario
    from casam_core.config.section import Section
    from scenarios.study.study import Study

    models: dict[Kind, type[Section]] = {
        Kind.scenario: Scenario,
        Kind.policy: Policy,
        Kind.study: Study,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **models[kind].model_json_schema()}


ABOUT_SITES = "INSTITUTION:TASK=SOURCE; SOURCE is a folder, or phantom:MODALITY."


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario to write, e.g. mine.toml.")],
    site: Annotated[
        list[str] | None, typer.Option(help=f"{ABOUT_SITES} Repeat it for each task, in learning order.")
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="As --site, for an institution that never trains.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The scenario's name. Default: from the file name.")
    ] = None,
    description: Annotated[str, typer.Option(help="One line about the scenario.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of splits, weights and phantoms.")] = 0,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training images. Default: their number decides."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Also write a policy file here, with every key and its default.")
    ] = None,
) -> None:
    """Write a commented scenario. Without --site it asks questions on a terminal.

    For example: casam init mine.toml --site lab:nuclei=nuclei --site heart-centre:cardiac=phantom:cardiac_mr
    """
    from casam_core.config.toml import parse_scenario
    from casam_core.files import write_new
    from scenarios.export.schema_pages import policy_text

    for path in (file, *([policy] if policy else [])):
        check_new(path)
    name = name or file.stem.lower().replace(" ", "-")
    if site:
        sites = [parse_site(text) for text in site]
        sites += [parse_site(text, unseen=True) for text in unseen or ()]
        order = ScenarioOrder(name, tuple(sites), description, seed, epochs)
    elif sys.stdin.isatty():
        order = ask(name, seed, epochs)
    else:
        raise ScenarioError(
            f"casam init: expected --site {ABOUT_SITES.split(';')[0]}, or a terminal for questions"
        )
    keys = [(site.name, site.task) for site in order.sites]
    if twice := sorted({f"{name}:{task}" for name, task in keys if keys.count((name, task)) > 1}):
        raise ScenarioError(
            f"--site: expected one source for each task of an institution, found several for {twice[0]}; "
            "join the folders, or give one of them another task or institution"
        )
    text = scenario_text(order)
    parse_scenario(tomllib.loads(text), str(file))
    write_new(file, text.encode())
    again = shlex.quote(str(file)) + root_of(order)
    typer.echo(f"{file} written. Check its data: casam data check --scenario {again}")
    typer.echo(f"Then: casam run {again}")
    if policy:
        write_new(policy, policy_text().encode())
        typer.echo(f"{policy} written: a policy with every key and its default")


@dataclass(frozen=True)
class SiteOrder:
    """One dataset of one institution. source: `phantom:MODALITY`, or a folder with its reader and keys."""

    name: str
    task: str
    source: str
    reader: str
    unseen: bool = False
    keys: tuple[tuple[str, object], ...] = ()

    @property
    def relative(self) -> bool:
        """Whether a run needs --data-root to find its folder."""
        return self.reader != "phantom" and not self.source.startswith(("/", "~"))


@dataclass(frozen=True)
class ScenarioOrder:
    """The scenario that `casam init` writes; sites are in the order in which their tasks are learned."""

    name: str
    sites: tuple[SiteOrder, ...]
    description: str = ""
    seed: int = 0
    epochs: int | None = None


NOT_HERE = "no such folder on this machine; images/ and masks/ are assumed in it"


def parse_site(text: str, *, unseen: bool = False) -> SiteOrder:
    """From `heart-centre:cardiac=phantom:cardiac_mr` or `lab:nuclei=FOLDER`. Raises ScenarioError."""
    from casam_core.config.scenario import NAME
    from client.data.phantoms import PHANTOMS
    from scenarios.inspection.layout import Layout

    found = re.fullmatch(rf"(?P<name>{NAME}):(?P<task>{NAME})=(?P<source>.+)", text)
    if found is None:
        raise ScenarioError(
            f"{text!r}: expected INSTITUTION:TASK=SOURCE with lower-case names, e.g. lab:nuclei=FOLDER or "
            "heart-centre:cardiac=phantom:cardiac_mr"
        )
    name, task, source = found["name"], found["task"], found["source"].strip()
    kind, _, modality = source.partition(":")
    if kind == "phantom":
        if modality not in PHANTOMS:
            raise ScenarioError(
                f"{text!r}: no phantom is called {modality!r}; expected one of {', '.join(PHANTOMS)}"
            )
        return SiteOrder(name, task, modality, "phantom", unseen)
    from scenarios.inspection.understand import understand

    folder = Path(source).expanduser()
    layout = understand(folder, a_person()) if folder.is_dir() else Layout("folder", notes=(NOT_HERE,))
    for note in layout.notes:
        typer.echo(f"{name}: {task}: {source}: {note}")
    return SiteOrder(name, task, source, layout.reader, unseen, tuple(layout.keys.items()))


def scenario_text(order: ScenarioOrder) -> str:
    """The text of a scenario file. `casam run` accepts it if its data are there."""
    stream = list(dict.fromkeys(site.task for site in order.sites if not site.unseen))
    return "\n".join([*scenario_lines(order, stream), ""])


def scenario_lines(order: ScenarioOrder, stream: Sequence[str]) -> Iterator[str]:
    """Line by line."""
    from scenarios.export.schema_pages import quoted

    root = " --data-root FOLDER" if any(site.relative for site in order.sites) else ""
    yield f"# Run it with: casam run THIS-FILE{root}"
    if root:
        yield "# FOLDER is the base folder of the relative paths below."
    yield "# docs/scenario.md describes every key. Change one key for one run: --set training.epochs=3"
    yield "# For completion in an editor: casam schema scenario > scenario.schema.json, and this first line:"
    yield "#   #:schema ./scenario.schema.json"
    yield f"name = {quoted(order.name)}"
    yield f"description = {quoted(order.description)}"
    yield f"seed = {order.seed}  # for splits, weights and phantoms; the same seed gives the same figures"
    yield f"stream = [{', '.join(map(quoted, stream))}]  # tasks in the order they are learned"
    for name in dict.fromkeys(site.name for site in order.sites):
        yield from institution_lines([site for site in order.sites if site.name == name])
    yield "\n[alignment]  # the layer that each task learns, between SAM's encoder and decoder"
    yield 'form = "low_rank"'
    yield "rank = 8"
    yield "\n[training]"
    if order.epochs is not None:
        yield f"epochs = {order.epochs}  # passes over the training images; more is slower"
    yield "batch_images = 1"
    yield "instances = 4  # objects drawn per image and step"
    yield "\n[evaluation]"
    yield "max_instances = 16  # objects per test image that are measured"


def institution_lines(sites: Sequence[SiteOrder]) -> Iterator[str]:
    """One institution with its tasks."""
    from scenarios.export.schema_pages import quoted

    yield "\n[[institutions]]"
    yield f"name = {quoted(sites[0].name)}"
    if sites[0].unseen:
        yield "unseen = true  # never trains; shows how images of unknown tasks are segmented"
    for site in sites:
        if site.reader == "phantom":
            content = f'reader = "phantom", phantom = {quoted(site.source)}, images = 26'
        else:
            table = {"reader": site.reader, "path": site.source, **dict(site.keys)}
            content = ", ".join(f"{key} = {quoted(value)}" for key, value in table.items())
        yield f"data.{site.task} = {{ {content} }}"
    yield '# policy.adapter.share = "never"  # its layers never leave it; see docs/scenario.md'


def check_new(path: Path) -> None:
    """Raise ScenarioError if the file exists, or if its folder does not."""
    if path.exists():
        raise ScenarioError(f"{path} exists already; nothing was written, name a new file")
    needs_folder(str(path), path)


def root_of(order: ScenarioOrder) -> str:
    """The option that relative data paths need: this folder where it holds them all."""
    relative = [site for site in order.sites if site.relative]
    here = all(Path(site.source).is_dir() for site in relative)
    return f" --data-root {'.' if here else 'FOLDER'}" if relative else ""


def ask(name: str, seed: int, epochs: int | None) -> ScenarioOrder:
    """Ask questions until the scenario is complete; repeat a question after a wrong answer."""
    sites: list[SiteOrder] = []
    typer.echo("Institutions learn one task after the other, in the order you name them.")
    while not sites or typer.confirm("Another task?", default=False):
        sites.append(ask_site())
    while typer.confirm("An unseen dataset, to see how unknown images are segmented?", default=False):
        sites.append(ask_site(unseen=True))
    description = typer.prompt("Description, in one line", default="")
    return ScenarioOrder(name, tuple(sites), description, seed, epochs)


def ask_site(*, unseen: bool = False) -> SiteOrder:
    """One dataset."""
    from client.data.phantoms import PHANTOMS

    while True:
        institution = typer.prompt("Institution (lower case, e.g. heart-centre)")
        task = typer.prompt("Task (lower case, e.g. cardiac_mr)")
        typer.echo(f"Its images: a folder, or a synthetic modality as phantom:NAME ({', '.join(PHANTOMS)})")
        try:
            return parse_site(f"{institution}:{task}={typer.prompt('Source')}", unseen=unseen)
        except ScenarioError as error:
            typer.echo(f"error: {error}")
