"""`casam init`: a first scenario of one's own, from flags or from questions."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import ScenarioError

if TYPE_CHECKING:
    from scenarios.templates import ScenarioOrder, SiteOrder

ABOUT_SITES = "INSTITUTION:TASK=SOURCE; SOURCE is a folder, or phantom:MODALITY."


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario to write, e.g. mine.toml.")],
    site: Annotated[
        list[str] | None, typer.Option(help=f"{ABOUT_SITES} Once per task, in the order of learning.")
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="The same, for an institution that never trains.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the file's own.")] = None,
    description: Annotated[str, typer.Option(help="One line.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 8,
    policy: Annotated[
        Path | None, typer.Option(help="Also write a policy file here, with every key and its default.")
    ] = None,
) -> None:
    """Write a commented scenario; without --site it asks, on a terminal.

    For example: casam init mine.toml --site lab:nuclei=nuclei --site heart-centre:cardiac=phantom:cardiac_mr
    """
    from casam_core.config.toml import parse_scenario
    from casam_core.files import write_new
    from scenarios.templates import ScenarioOrder, parse_site, policy_text, scenario_text

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
            f"casam init: expected --site {ABOUT_SITES.split(';')[0]} or a terminal to ask on"
        )
    text = scenario_text(order)
    parse_scenario(tomllib.loads(text), str(file))
    write_new(file, text.encode())
    typer.echo(f"{file} written. Check its data: casam data check --scenario {file}{root_of(order)}")
    typer.echo(f"Then: casam run {file}{root_of(order)}")
    if policy:
        write_new(policy, policy_text().encode())
        typer.echo(f"{policy} written: a policy with every key and its default")


def check_new(path: Path) -> None:
    """Raise ScenarioError where something is, or where there is no folder to write into."""
    if path.exists():
        raise ScenarioError(f"{path} exists already; name a new file, nothing was written")
    if not path.parent.is_dir():
        raise ScenarioError(
            f"{path}: expected its folder to be there, found none at {path.parent}; make it first"
        )


def root_of(order: ScenarioOrder) -> str:
    """The option that relative data paths need."""
    return " --data-root FOLDER" if any(site.relative for site in order.sites) else ""


def ask(name: str, seed: int, epochs: int) -> ScenarioOrder:
    """Questions until there is a scenario; a wrong answer is asked again."""
    from scenarios.templates import ScenarioOrder

    sites: list[SiteOrder] = []
    typer.echo("Institutions learn one task after the other, in the order you name them.")
    while not sites or typer.confirm("Another task?", default=False):
        sites.append(ask_site())
    while typer.confirm("A dataset that nobody trains on, to see what unknown images suffer?", default=False):
        sites.append(ask_site(unseen=True))
    description = typer.prompt("What is it about, in one line", default="")
    epochs = typer.prompt("Passes over the training images", default=epochs, type=int)
    return ScenarioOrder(name, tuple(sites), description, seed, epochs)


def ask_site(*, unseen: bool = False) -> SiteOrder:
    """One dataset."""
    from client.data.phantoms import PHANTOMS
    from scenarios.templates import parse_site

    while True:
        institution = typer.prompt("Institution (lower case, e.g. heart-centre)")
        task = typer.prompt("Task (lower case, e.g. cardiac_mr)")
        typer.echo(f"Its images: a folder, or a synthetic modality as phantom:NAME ({', '.join(PHANTOMS)})")
        try:
            return parse_site(f"{institution}:{task}={typer.prompt('Source')}", unseen=unseen)
        except ScenarioError as error:
            typer.echo(f"error: {error}")
