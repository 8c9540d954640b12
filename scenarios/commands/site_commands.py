"""`casam site`: an institution describes its images, reads what a scenario asks, and approves it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casam_core.errors import PolicyError, ScenarioError
from scenarios.commands.terminal import Json, needs_folder, print_json

if TYPE_CHECKING:
    from casam_core.config.scenario import Scenario

site_app = typer.Typer(no_args_is_help=True, help="What an institution decides for itself.")

NodeOption = Annotated[Path, typer.Option("--node", help="The site's node.toml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario, as the operator does."),
]
Asked = Annotated[
    str | None,
    typer.Argument(
        metavar="SCENARIO|DIGEST",
        help="A scenario file or name, or the first digits of a digest that waits or was approved.",
    ),
]


@site_app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="One dataset, or a folder with one dataset per task.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("site.toml"),
) -> None:
    """Write a site file for the images in FOLDER: reader, path, groups and sizes, with comments to read.

    For example: casam site init /data --out images.toml
    """
    if not folder.expanduser().is_dir():
        raise ScenarioError(f"{folder}: expected a folder with images, found none; correct the path")
    needs_folder("--out", out)
    from casam_core.files import write_new
    from scenarios.inspection.site_files import site_text_of

    text, notes = site_text_of(folder)
    try:
        write_new(out, text.encode())
    except FileExistsError as error:
        raise ScenarioError(f"--out: {out} exists already; name a new file") from error
    for note in notes:
        typer.echo(note)
    check = shlex.join(["casam", "data", "check", "--site", str(out), "--data-root", str(folder)])
    typer.echo(f"read and change {out}, let `site` in node.toml name it, then run: {check}")


@site_app.command()
def review(
    scenario: Asked = None,
    node: NodeOption = Path("node.toml"),
    set_: SetOption = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the page as Markdown.")] = None,
    json_: Json = False,
) -> None:
    """Say in plain words what a scenario asks of this site: what can leave (bits, epsilon), and who sees it.

    Without SCENARIO it lists the scenarios that wait and those that were approved.

    For example: casam site review mine.toml --node node.toml --markdown review.md
    """
    needs_folder("--markdown", markdown)
    from casam_core.files import write_atomic
    from scenarios.deploy.place import site_at

    place = site_at(node)
    if scenario is None:
        if json_:
            print_json(list(place.facts()))
            return
        for line in place.overview():
            typer.echo(line)
        return
    from scenarios.inspection.plain_page import as_facts, as_markdown
    from scenarios.inspection.site_review import page_of

    page = page_of(place, found(scenario, set_, place.home))
    text = as_markdown(page)
    if markdown is not None:
        write_atomic(markdown, text.encode())
    if json_:
        print_json(as_facts(page))
        return
    typer.echo(text)


@site_app.command()
def approve(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO|DIGEST", help="As for `casam site review`.")],
    node: NodeOption = Path("node.toml"),
    set_: SetOption = None,
) -> None:
    """Approve exactly this scenario. Any change of it, also of one key, needs another approval.

    For example: casam site approve mine.toml --node node.toml
    """
    from client.node.approvals import approve as write_approval
    from scenarios.deploy.place import site_at

    place = site_at(node)
    place.check_user()
    asked = found(scenario, set_, place.home)
    given = write_approval(asked, place.institution, place.site, place.home, "person")
    typer.echo(f"{place.institution} approves {given.name} {given.digest}")


@site_app.command()
def withdraw(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO|DIGEST", help="As for `casam site review`.")],
    node: NodeOption = Path("node.toml"),
    set_: SetOption = None,
) -> None:
    """Take an approval back: from the next request on, the node answers `waiting-for-approval`.

    For example: casam site withdraw mine.toml --node node.toml
    """
    from client.node.approvals import withdraw as write_withdrawal
    from scenarios.deploy.place import site_at

    place = site_at(node)
    place.check_user()
    asked = found(scenario, set_, place.home)
    write_withdrawal(asked.digest(), place.home)
    typer.echo(f"{place.institution} no longer approves {asked.name} {asked.digest()}")


def found(asked: str, overrides: list[str] | None, home: Path) -> Scenario:
    """The scenario that the user means: one that waits or was approved here, or a file or name.

    Raises PolicyError if the digits fit several or the kept text is damaged; ScenarioError for no scenario.
    """
    from casam_core.config.library import resolve_scenario
    from client.node.approvals import read_sent

    digits = asked.lower()
    if len(digits) >= 4 and set(digits) <= set("0123456789abcdef") and not Path(asked).exists():
        kept = [*(home / "pending").glob(f"{digits}*.json"), *(home / "approved").glob(f"{digits}*.json")]
        if len({path.name for path in kept}) > 1:
            raise PolicyError(
                f"{asked}: expected the digits of one scenario, found {len(kept)}; give more digits"
            )
        if kept:
            return read_sent(kept[0].read_text(encoding="utf-8"))
    return resolve_scenario(asked, overrides or [])
