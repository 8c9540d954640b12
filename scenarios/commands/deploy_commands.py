"""`casam deploy`: institutions as nodes of their own; `casam node`: what an institution starts;
`casam bundle`: the code that runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.terminal import console

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
    from scenarios.deploy.local import DeployOrder, deploy_local
    from scenarios.engines.run import show_results

    screen = console()
    order = DeployOrder(scenario, data_root, out, sites, tuple(set_ or ()))
    show_results(deploy_local(order, screen), screen)


SuperLinkOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink, not the gateway.")]
AuthorityOption = Annotated[Path, typer.Option(help="The operator's ca.crt, which signed its certificate.")]


@deploy_app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A name of `casam scenarios`, or a path to a .toml file.")],
    superlink: SuperLinkOption,
    authority: AuthorityOption,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder, which the SuperLink's machine writes. Default: runs/<scenario>-<time>."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Run a scenario over the institutions that are connected to a SuperLink, and follow it to its end.

    Exits 0 only for a completed run, 1 for a failed one, 2 for bad input.
    """
    from scenarios.deploy.operator import run_remotely
    from scenarios.engines.run import choose_folder, show_results
    from scenarios.library_files import resolve_scenario

    screen = console()
    resolved = resolve_scenario(scenario, set_ or [])
    folder = choose_folder(resolved, out)
    run_remotely(resolved, folder, superlink, authority, screen)
    show_results(folder, screen)


@deploy_app.command()
def register(
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of nodes.")],
    superlink: SuperLinkOption,
    authority: AuthorityOption,
) -> None:
    """Let the nodes with these keys connect; a key that is registered already stays so."""
    from scenarios.deploy.operator import register as register_key
    from scenarios.deploy.operator import remote_superlink

    with remote_superlink(superlink, authority) as link:
        for key in keys:
            number = register_key(link, key)
            typer.echo(f"{key.name}: " + ("registered already" if number is None else f"node {number}"))


@deploy_app.command()
def revoke(
    nodes: Annotated[list[int], typer.Argument(metavar="NUMBER...", help="As `casam deploy nodes` lists.")],
    superlink: SuperLinkOption,
    authority: AuthorityOption,
) -> None:
    """Refuse these nodes from now on, also where they are connected."""
    from scenarios.deploy.operator import remote_superlink, unregister

    with remote_superlink(superlink, authority) as link:
        for number in nodes:
            unregister(link, number)
            typer.echo(f"node {number}: revoked")


@deploy_app.command()
def nodes(superlink: SuperLinkOption, authority: AuthorityOption) -> None:
    """List every registered node and whether it is connected."""
    from scenarios.deploy.operator import list_nodes, remote_superlink

    with remote_superlink(superlink, authority) as link:
        for number, status in list_nodes(link).items():
            typer.echo(f"{number}  {status}")


@deploy_app.command()
def key(
    out: Annotated[Path, typer.Option(help="File for the private key; FILE.pub gets the public.")],
) -> None:
    """Make a node's key where it will be used, so that no private key travels."""
    from casam_core.errors import DeploymentError
    from scenarios.deploy.certificates import node_key, write_private, write_public

    public = out.with_name(f"{out.name}.pub")
    for path in (out, public):
        if path.exists():
            raise DeploymentError(f"{path} exists already; a key is never overwritten")
    private_bytes, public_bytes = node_key()
    write_private(out, private_bytes)
    write_public(public, public_bytes)
    typer.echo(f"{out} stays here; send {public} to the operator")


def provision(
    institutions: Annotated[str, typer.Option(metavar="A,B,C", help="Names, as scenarios call them.")],
    out: Annotated[Path, typer.Option(help="Folder for operator/ and institutions/; what is there is kept.")],
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where nodes connect: the gateway's address.")
    ] = "localhost:9092",
    names: Annotated[
        str, typer.Option(help="Further host names and addresses for the server's certificate.")
    ] = "",
    home: Annotated[str, typer.Option(help="home of every node.toml.")] = "/home/casam",
    data: Annotated[str, typer.Option(help="data_root of every node.toml.")] = "/data",
    renew_server: Annotated[
        bool, typer.Option("--renew-server", help="A new server certificate from the same authority.")
    ] = False,
) -> None:
    """Write the kit for real machines: a folder per institution, and the operator's, to be kept apart.

    Each kit holds the authority's certificate, a key, a policy to fill in, the pinned bundle, hash-locked
    requirements, a bill of materials, a compose file and checksums (docs/deployment.md).
    """
    from scenarios.deploy.provision import Consortium, parse_names
    from scenarios.deploy.provision import provision as write_kits

    consortium = Consortium(parse_names(institutions), server, parse_names(names) if names else ())
    write_kits(consortium, out, typer.echo, renew_server=renew_server, home=home, data=data)


def gateway(
    superlink: SuperLinkOption,
    authority: AuthorityOption,
    certificate: Annotated[Path, typer.Option(help="The server's certificate (server.crt).")],
    key: Annotated[Path, typer.Option(help="Its private key (server.key).")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "0.0.0.0:9092",
) -> None:
    """Stand between nodes and a SuperLink: forward what nodes need, refuse all else (who may start runs)."""
    from casam_core.errors import DeploymentError
    from scenarios.deploy.gateway import Gateway, serve

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise DeploymentError(f"--listen: expected HOST:PORT, found {listen!r}")
    serve(Gateway(host, int(port), certificate, key, superlink, authority))


def node(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The site's node.toml (docs/deployment.md).")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether it could start.")] = False,
) -> None:
    """Take part as an institution: connect to the server and run the one bundle that FILE pins.

    The hash, the policy, the data folder and the key are the site's own; the server decides none of them.
    """
    from client.node.launcher import launch
    from client.node.node_file import check_node, read_node_file

    if check:
        ready = read_node_file(file)
        check_node(ready)
        typer.echo(f"ready: {ready.institution} to {ready.superlink}, bundle {ready.bundle}")
        return
    launch(file)


@bundle_app.command("hash")
def hash_() -> None:
    """Print the SHA-256 of this checkout's bundle, which sites pin in their node.toml."""
    from scenarios.engines.bundle import build_bundle, bundle_hash

    typer.echo(bundle_hash(build_bundle()))


@bundle_app.command()
def build(out: Annotated[Path, typer.Option(help="File to write, a zip.")]) -> None:
    """Write this checkout's bundle, for a site to read before it pins it, and print its hash."""
    from casam_core.files import write_atomic
    from scenarios.engines.bundle import build_bundle, bundle_hash

    bundle = build_bundle()
    write_atomic(out, bundle)
    typer.echo(bundle_hash(bundle))
