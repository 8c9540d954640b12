"""`casam scenarios`: what comes with casam; `casam schema`: what editors know about our files."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

scenarios_app = typer.Typer(invoke_without_command=True, help="List the scenarios that come with casam.")
studies_app = typer.Typer(invoke_without_command=True, help="List the studies that come with casam.")


@scenarios_app.callback()
def scenarios(context: typer.Context) -> None:
    """List the scenarios that come with casam: minutes on two CPU cores, what it is, what to look at."""
    if context.invoked_subcommand is not None:
        return
    from casam_core.config.library import library_names
    from scenarios.commands.terminal import listing
    from scenarios.library_files import resolve_scenario

    for line in listing([resolve_scenario(name) for name in library_names()]):
        typer.echo(line)
    typer.echo("\nOne file: casam scenarios show NAME. Several runs compared: casam studies")


@scenarios_app.command("show")
def show_scenario(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `casam scenarios`.")],
) -> None:
    """Print a scenario's file, to read or to start one of your own from."""
    from casam_core.config.toml import read_table
    from casam_core.errors import ScenarioError
    from scenarios.library_files import scenario_path

    path = scenario_path(name)
    read_table(path, "scenario", ScenarioError)
    typer.echo(path.read_text(), nl=False)


@studies_app.callback()
def studies(context: typer.Context) -> None:
    """List the studies that come with casam: minutes on two CPU cores, what it is, what to look at."""
    if context.invoked_subcommand is not None:
        return
    from scenarios.commands.terminal import listing
    from scenarios.library_files import STUDIES, study_names
    from scenarios.study.study import read_study

    for line in listing([read_study(STUDIES / f"{name}.toml") for name in study_names()]):
        typer.echo(line)


@studies_app.command("show")
def show_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `casam studies`.")],
) -> None:
    """Print a study's file, to read or to start one of your own from."""
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
    kind: Annotated[Kind, typer.Argument(help="Which file an editor is to understand.")] = Kind.scenario,
) -> None:
    """Print the JSON Schema of a file, for completion and checks in an editor (docs/scenario-files.md)."""
    typer.echo(json.dumps(schema_of(kind), indent=2))


def schema_of(kind: Kind) -> dict[str, object]:
    """The schema by which casam itself reads the file; rules between keys are casam's alone to check."""
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
