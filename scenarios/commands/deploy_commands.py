"""`casam deploy`: the operator's commands; `casam node`: an institution's command; `casam bundle`: the code
that institutions run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.terminal import Json, NewRun, OfKeys, OfScenario, at_ctrl_c, needs_folder, print_json
from scenarios.printing import console, say

deploy_app = typer.Typer(no_args_is_help=True, help="Run a scenario on institutions that are separate nodes.")
bundle_app = typer.Typer(no_args_is_help=True, help="The bundle of code that institutions run.")


@deploy_app.command()
def local(
    scenario: OfScenario,
    out: NewRun = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Base folder of the scenario's data paths; none may leave it.")
    ] = None,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="Folder with one home per institution; the ledgers, logs and embeddings in it continue. "
            "Default: new homes in the run folder."
        ),
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="This institution is a relay, and FILE is the scenario of its members, who get a network of "
            "their own. Repeatable.",
        ),
    ] = None,
    set_: OfKeys = None,
) -> None:
    """Rehearse a deployment on this machine: TLS, registered keys, pinned code, a process per institution.

    For example: casam deploy local quickstart

    Exit status: 0 the run completed, 1 it failed, 2 bad input. All processes that it started are ended.
    """
    from casam_core.config.library import resolve_scenario
    from casam_core.errors import ScenarioError
    from scenarios.engines.order import data_folder

    screen = console()
    resolved, root = resolve_scenario(scenario, set_ or []), data_folder(data_root)
    relays = {}
    for name, found, file in (word.partition("=") for word in relay or []):
        if not found:
            raise ScenarioError(f"--relay: expected NAME=FILE, found {name!r}")
        relays[name] = resolve_scenario(file, [])
    number = sum(len(one.institutions) for one in (resolved, *relays.values()))
    say(screen, f"{resolved.name}: {number} nodes on this machine; starts")
    with screen.status("loading the libraries"):
        from scenarios.deploy.local import DeployOrder, deploy_local
        from scenarios.engines.run import show_results
    with at_ctrl_c(lambda: "stopped; ends all nodes of this rehearsal"):
        show_results(deploy_local(resolved, DeployOrder(root, out, sites, relays), screen), screen)


SuperLinkOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Address of the SuperLink, not of the gateway.")
]
AuthorityOption = Annotated[Path, typer.Option(help="The operator's ca.crt, which signed the certificate.")]


@deploy_app.command()
def run(
    scenario: OfScenario,
    superlink: SuperLinkOption,
    authority: AuthorityOption,
    register: Annotated[
        Path,
        typer.Option(
            help="The operator's register.json, beside signing.key; the SuperLink's machine reads both."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; the SuperLink's machine writes it. Default: runs/<scenario>-<time>."),
    ] = None,
    relay: Annotated[
        Path | None,
        typer.Option(
            help="A relay's folder of questions: answer them for the institutions of the scenario, until a "
            "file `stop` lies there (docs/deployment.md)."
        ),
    ] = None,
    set_: OfKeys = None,
) -> None:
    """Run a scenario on the institutions that are connected to a SuperLink, and wait for its end.

    For example: casam deploy run mine.toml --superlink localhost:8000 --authority ca.crt
    --register /server/register.json

    Exit status: 0 the run completed, 1 it failed, 2 bad input.
    """
    from casam_core.config.library import resolve_scenario
    from scenarios.engines.order import choose_folder

    screen = console()
    resolved = resolve_scenario(scenario, set_ or [])
    folder = choose_folder(resolved, out)
    say(screen, f"{resolved.name}: starts at {superlink}")
    from scenarios.deploy.operator import run_remotely
    from scenarios.engines.run import show_results

    run_remotely(resolved, folder, register, superlink, authority, screen, relay)
    if relay is None:
        show_results(folder, screen)


@deploy_app.command()
def register(
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of nodes.")],
    superlink: SuperLinkOption,
    authority: AuthorityOption,
) -> None:
    """Register the public keys of nodes (KEY.pub), so that these nodes can connect.

    For example: casam deploy register node.key.pub --superlink localhost:8000 --authority ca.crt
    """
    from scenarios.deploy.operator import register as register_key
    from scenarios.deploy.operator import remote_superlink

    with remote_superlink(superlink, authority) as link:
        for key in keys:
            number = register_key(link, key)
            known = "known already; a revoked key stays revoked"
            typer.echo(f"{key.name}: {known if number is None else f'node {number}'}")


@deploy_app.command()
def revoke(
    nodes: Annotated[list[int], typer.Argument(metavar="NUMBER...", help="As `casam deploy nodes` lists.")],
    superlink: SuperLinkOption,
    authority: AuthorityOption,
) -> None:
    """Revoke the access of these nodes at once, also while they are connected.

    For example: casam deploy revoke 3 --superlink localhost:8000 --authority ca.crt
    """
    from scenarios.deploy.operator import remote_superlink, unregister

    with remote_superlink(superlink, authority) as link:
        for number in nodes:
            unregister(link, number)
            typer.echo(f"node {number}: revoked")


@deploy_app.command()
def nodes(
    superlink: SuperLinkOption,
    authority: AuthorityOption,
    keys: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[KEY.pub...]", help="Key files by which the list names nodes."),
    ] = None,
    json_: Json = False,
) -> None:
    """List every node: its number, whether it is connected, and which KEY.pub is the file of its key.

    For example: casam deploy nodes nodes/*.pub --superlink localhost:8000 --authority ca.crt
    """
    from scenarios.deploy.operator import list_nodes, names_of_nodes, remote_superlink

    with remote_superlink(superlink, authority) as link:
        found = list_nodes(link)
        names = names_of_nodes(link, keys) if keys else {}
    if json_:
        # A number of 64 bits is text, because many readers of JSON round it.
        rows = [{"node": str(n), "status": status, "key": names.get(n, "")} for n, status in found.items()]
        print_json(rows)
        return
    for number, status in found.items():
        typer.echo(f"{number}  {status:<12}  {names.get(number, '')}".rstrip())


@deploy_app.command("metrics")
def serve_metrics(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help="A run, or a folder of runs, of which the newest counts.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="[HOST:]PORT", help="Where to answer; without HOST on this machine only.")
    ] = "9464",
) -> None:
    """Answer /metrics in Prometheus' format: stages, answers, refusals, epsilon and bytes of a server's runs.

    For example: casam deploy metrics /runs --listen 9464

    It only reads events.jsonl, so it may run in a process or a container of its own.
    """
    from scenarios.deploy.addresses import address_of
    from scenarios.deploy.monitoring.counting import newest_run
    from scenarios.deploy.monitoring.status import metrics_page, status_server

    pages = {"/metrics": metrics_page(newest_run(runs.expanduser().resolve()))}
    host, port = address_of(listen, "--listen")
    with status_server(host, port, pages) as server:
        typer.echo(f"answers at http://{host}:{port}/metrics")
        server.serve_forever()


@deploy_app.command("json-log", context_settings={"ignore_unknown_options": True})
def json_log(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="A command with its options, after `--`.")
    ],
    part: Annotated[str, typer.Option(help="The field `part` of every line. Default: the command.")] = "",
) -> None:
    """Run a command with its output as JSON lines: time, part, level, message.

    For example: casam deploy json-log --part node -- casam node node.toml

    Signals reach the command, and its exit status is its own.
    """
    from scenarios.deploy.monitoring.log_lines import run_logged

    run_logged(command, part)


@deploy_app.command()
def key(
    out: Annotated[Path, typer.Option(help="File for the private key; the public key goes to FILE.pub.")],
    signing: Annotated[bool, typer.Option("--signing", help="Make a signing key, not a node's key.")] = False,
) -> None:
    """Make a key pair on the institution's own machine, so that no private key is transferred.

    With --signing it is the key under the institution's name in the register, else the node's.

    For example: casam deploy key --out node.key
    """
    from casam_core.errors import DeploymentError
    from scenarios.deploy.certificates import node_key, signing_pair, write_private, write_public

    needs_folder("--out", out)
    public = out.with_name(f"{out.name}.pub")
    for path in (out, public):
        if path.exists():
            raise DeploymentError(f"{path} exists already and keys are never overwritten; name a new file")
    private_bytes, public_bytes = signing_pair() if signing else node_key()
    write_private(out, private_bytes)
    write_public(public, public_bytes)
    typer.echo(f"keep {out} on this machine; send {public} to the operator")


def provision(
    institutions: Annotated[str, typer.Option(metavar="A,B,C", help="The institutions' names in scenarios.")],
    out: Annotated[
        Path, typer.Option(help="Folder for operator/ and institutions/; existing folders are kept.")
    ],
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The gateway's address, to which nodes connect.")
    ],
    names: Annotated[
        str, typer.Option(help="More host names or addresses for the server's certificate, with commas.")
    ] = "",
    home: Annotated[str, typer.Option(help="Value of `home` in every node.toml.")] = "/home/casam",
    data: Annotated[str, typer.Option(help="Value of `data_root` in every node.toml.")] = "/data",
    renew_server: Annotated[
        bool,
        typer.Option(
            "--renew-server",
            help="Make a new server certificate from the same authority; it keeps its names.",
        ),
    ] = False,
) -> None:
    """Write the kits for real machines: one folder per institution, and a separate one for the operator.

    For example: casam provision --institutions heart-centre,lung-clinic --server fl.example.org:9092
    --out kits

    A kit holds the authority's certificate, two keys, the register of all names and keys, a policy to fill
    in, the pinned bundle, hash-locked requirements, a bill of materials, a compose file and checksums
    (docs/deployment.md).
    """
    from scenarios.deploy.provision import Consortium, parse_names
    from scenarios.deploy.provision import provision as write_kits

    more = parse_names(names) if names else ()
    consortium = Consortium(parse_names(institutions), server, more, home, data)
    write_kits(consortium, out, typer.echo, renew_server=renew_server)


def gateway(
    superlink: SuperLinkOption,
    authority: AuthorityOption,
    certificate: Annotated[Path, typer.Option(help="The server's certificate (server.crt).")],
    key: Annotated[Path, typer.Option(help="Its private key (server.key).")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address that accepts the nodes' connections.")
    ] = "0.0.0.0:9092",
) -> None:
    """Forward the requests that nodes need to a SuperLink, and refuse all others, such as starting a run.

    For example: casam gateway --superlink localhost:8000 --authority ca.crt --certificate s.crt --key s.key
    """
    from scenarios.deploy.addresses import host_and_port
    from scenarios.deploy.gateway import Gateway, serve

    host_and_port(superlink, "--superlink")
    serve(Gateway(*host_and_port(listen, "--listen"), certificate, key, superlink, authority))


def node(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The site's node.toml (docs/deployment.md).")],
    check: Annotated[bool, typer.Option("--check", help="Check settings and images; do not start.")] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Answer /health (does the server know this node?) and /metrics (Prometheus) there; without "
            "HOST on this machine only. Default: off.",
        ),
    ] = None,
) -> None:
    """Take part as an institution: connect to the server and run only the bundle that FILE pins.

    The site chooses the bundle's hash, the policy, the data folder and the key; the server cannot change
    them.

    For example: casam node --check node.toml
    """
    from client.node.launcher import launch
    from client.node.node_file import check_node, read_node_file
    from scenarios.deploy.place import check_images, site_at

    ready = read_node_file(file)
    check_node(ready)
    typer.echo(f"{ready.institution}: looking at the images of the site file")
    check_images(site_at(file))
    if check:
        typer.echo(f"ready: {ready.institution} to {ready.superlink}, bundle {ready.bundle}")
        return
    from scenarios.deploy.addresses import address_of
    from scenarios.deploy.monitoring.counting import site_figures
    from scenarios.deploy.monitoring.status import Contact, in_background, metrics_page, status_server

    contact = Contact()
    if metrics is not None:
        page = metrics_page(lambda: [*contact.families(), *site_figures(ready.home)])
        pages = {"/metrics": page, "/health": contact.health}
        in_background(status_server(*address_of(metrics, "--metrics"), pages))
    launch(file, contact.heard)


@bundle_app.command("hash")
def hash_() -> None:
    """Print the SHA-256 of this checkout's bundle. Sites pin it in their node.toml."""
    from scenarios.engines.bundle import build_bundle, bundle_hash

    typer.echo(bundle_hash(build_bundle()))


@bundle_app.command()
def build(out: Annotated[Path, typer.Option(help="The zip file to write.")]) -> None:
    """Write this checkout's bundle, so that a site can read it before pinning, and print its hash.

    For example: casam bundle build --out casam.fab
    """
    needs_folder("--out", out)
    from casam_core.files import write_atomic
    from scenarios.engines.bundle import build_bundle, bundle_hash

    bundle = build_bundle()
    write_atomic(out, bundle)
    typer.echo(bundle_hash(bundle))
