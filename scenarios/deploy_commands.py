"""`casam deploy`: institutions as nodes of their own; `casam node`: what an institution starts;
`casam bundle`: the code that runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.screen import console

deploy_app = typer.Typer(no_args_is_help=True, help="Run a scenario with institutions as nodes of their own.")
bundle_app = typer.Typer(no_args_is_help=True, help="The bundle of code that institutions run.")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. --set training.epochs=3."),
]


@deploy_app.command()
def local(
    scenario: Annotated[str, typer.Argument(help="A name of `casam scenarios`, or a path to a .toml file.")],
    out: Annotated[
        Path | None, typer.Option(help="Run folder (new or empty). Default: runs/<scenario>-<time>.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that data paths of the scenario start from and stay below.")
    ] = None,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="Institutions' homes, one folder each: budgets, logs and embeddings of earlier runs go on. "
            "Default: fresh ones in the run folder."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Rehearse a deployment on this machine: TLS, registered keys, pinned code, a process per institution.

    Exits 0 only for a completed run, 1 for a failed one, 2 for bad input; ends everything it started.
    """
    from scenarios.deployment.local import DeployOrder, deploy_local
    from scenarios.run import show_results

    screen = console()
    order = DeployOrder(scenario, data_root, out, sites, tuple(set_ or ()))
    show_results(deploy_local(order, screen), screen)


def node(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The site's node.toml (docs/deployment.md).")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether it could start.")] = False,
) -> None:
    """Take part as an institution: connect to the server and run the one bundle that FILE pins.

    The hash, the policy, the data folder and the key are the site's own; the server decides none of them.
    """
    from client.launcher import launch
    from client.node_file import check_node, read_node_file

    if check:
        ready = read_node_file(file)
        check_node(ready)
        typer.echo(f"ready: {ready.institution} to {ready.superlink}, bundle {ready.bundle}")
        return
    launch(file)


@bundle_app.command("hash")
def hash_() -> None:
    """Print the SHA-256 of this checkout's bundle, which sites pin in their node.toml."""
    from scenarios.bundle import build_bundle, bundle_hash

    typer.echo(bundle_hash(build_bundle()))


@bundle_app.command()
def build(out: Annotated[Path, typer.Option(help="File to write, a zip.")]) -> None:
    """Write this checkout's bundle, for a site to read before it pins it, and print its hash."""
    from casam_core.files import write_atomic
    from scenarios.bundle import build_bundle, bundle_hash

    bundle = build_bundle()
    write_atomic(out, bundle)
    typer.echo(bundle_hash(bundle))
