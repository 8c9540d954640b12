"""`casam audit` and `casam ledger`: check audit logs, list releases and their privacy cost.

Exit status: 0 consistent, 1 tampered or different, 2 not readable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.terminal import Json, print_json
from scenarios.printing import plain_columns

audit_app = typer.Typer(no_args_is_help=True, help="Verify and read the log of an institution's releases.")

LogFile = Annotated[Path, typer.Argument(metavar="FILE", help="An audit.jsonl.")]
TAMPERED = 1


@audit_app.command()
def verify(
    file: LogFile,
    anchor: Annotated[
        Path | None,
        typer.Option(
            help="The server's audit.jsonl; it shows whether the log was cut at its end or rewritten."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Check the hash chain of a log, and with --anchor that no line is missing at its end.

    For example: casam audit verify audit.jsonl --anchor RUN/audit.jsonl
    """
    from casam_core.protocol.audit import AuditError, against_anchor, broken, read_log
    from server.run.run_folder import heads_of

    lines = read_log(file)
    fault = broken(lines)
    if fault is None and anchor is not None:
        names = {line.release.institution for line in lines}
        heads = [head for head in heads_of(anchor) if head.institution in names]
        if not heads:  # an emptied log, or any other file as the anchor, must not pass for a whole log
            if not names:
                raise AuditError(
                    f"{file}: expected at least one release to compare with the server's, found an empty "
                    "log; if this institution ever answered, its lines were removed"
                )
            raise AuditError(
                f"{anchor}: expected the server's audit.jsonl with answers of {', '.join(sorted(names))}, "
                "found none; name the server's file of a run in which this institution took part"
            )
        fault = against_anchor(lines, heads)
    if json_:
        print_json(
            {
                "consistent": fault is None,
                "fault": fault,
                "lines": len(lines),
                "end_checked": anchor is not None,
            }
        )
    elif fault is None:
        typer.echo(f"consistent: {len(lines)} lines, one for each release of every run")
        if anchor is None:
            typer.echo("not checked without --anchor: a cut at the end, a completely rewritten log")
        else:
            typer.echo("verdict: no line was changed, and none is missing that the server has seen")
    else:
        typer.echo(f"tampered: {file}: {fault}")
        typer.echo("verdict: do not trust this log; compare it with a backup and with the server's file")
    if fault is not None:
        raise typer.Exit(TAMPERED)


@audit_app.command()
def show(
    file: LogFile,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List an institution's releases in order: time, kind, task, bytes, epsilon, policy clause.

    For example: casam audit show RUN/institutions/NAME/private/audit.jsonl
    """
    from casam_core.errors import plain
    from casam_core.protocol.audit import broken, line_text, read_log

    lines = read_log(file)
    if fault := broken(lines):
        typer.echo(f"warning: {file}: {fault}; do not trust this list, see casam audit verify", err=True)
    if json_:
        for line in lines:
            typer.echo(line_text(line))
        return
    rows = [("line", "time", "kind", "stage", "task", "outcome", "bytes", "epsilon", "clause", "digest")]
    for line in lines:
        release = line.release
        known = (release.epsilon or {}).items()
        spent = [(name, value) for name, value in known if value is not None and name != "ledger"]
        epsilon = " ".join(f"{name} {value:.2f}" for name, value in spent)
        rows.append(
            (
                str(line.sequence),
                release.time[:19],
                release.kind,
                str(release.stage),
                release.task or "-",
                release.outcome,
                str(release.bytes),
                epsilon or "-",
                release.clause,
                release.digest[:12],
            )
        )
    for text in plain_columns(rows):
        typer.echo(plain(text, longest=1000))


@audit_app.command()
def compare(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The institution's audit.jsonl.")],
    server: Annotated[Path, typer.Argument(metavar="SERVER", help="The server's audit.jsonl of one run.")],
    json_: Json = False,
) -> None:
    """Check that an institution's releases equal the releases that arrived at the server.

    For example: casam audit compare RUN/institutions/NAME/private/audit.jsonl RUN/audit.jsonl
    """
    from casam_core.errors import plain
    from casam_core.protocol.audit import AuditError, head_at, read_log
    from server.run.run_folder import read_arrivals

    arrived = read_arrivals(server)
    if arrived and not any(head_at(release.clause, "") for release in arrived):
        raise AuditError(
            f"{server}: expected the server's audit.jsonl of a run, found the log of an institution; write "
            "the institution's file first, then the server's"
        )
    logged = [line.release for line in read_log(site)]
    from scenarios.inspection.verify import compared  # with torch: only once there are two logs

    left, found = compared(logged, arrived)
    if not left and not found:  # any other file must not pass for what the server received
        raise AuditError(
            f"{server}: expected the server's audit.jsonl of a run of this institution, found "
            "none of its answers; nothing was compared"
        )
    others = len(logged) - len(left)
    if json_:
        print_json({"equal": not found, "differences": found, "releases": len(left), "not_compared": others})
    else:
        for difference in found:
            typer.echo(plain(difference))
        if found:
            typer.echo("verdict: what the institution logged is not what the server received")
        else:
            typer.echo(f"equal: {len(left)} releases")
            typer.echo(f"not compared: {others} lines of other runs, or from before the server knew the site")
    if found:
        raise typer.Exit(TAMPERED)


@audit_app.command()
def accept(
    file: LogFile,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="The place that the site's log names.")],
    reason: Annotated[str, typer.Option(help="Why the newer files are lost; the log keeps it.")],
) -> None:
    """Accept that a site's newer log is lost, so that the site answers again after a restored backup.

    Budget that was spent after the backup is no longer counted: first lower the budget in policy.toml by what
    was spent since then. The site's log names PLACE.

    For example: casam audit accept audit.jsonl PLACE --reason 'disk lost, backup of Monday'
    """
    from casam_core.protocol.audit import AuditError, Release, audit_log, head_at, now

    if head_at(place, "") is None or not file.is_file():
        raise AuditError(
            f"{file}: expected an audit log and a whole place SEQUENCE:HEAD (12 and 64 digits), as in the "
            f"site's log; found {place!r}"
        )
    from client.release.approval import ACCEPTED

    lines = audit_log(file).lines()
    name = lines[-1].release.institution if lines else ""
    audit_log(file).add(Release(now(), name, "", "", ACCEPTED, 0, 0, "", "ok", place, (reason,), 0, "", None))
    typer.echo(f"accepted: releases up to {place[:12]} are lost; this is line {len(lines) + 1} of the log")


@audit_app.command()
def receipt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipts/*.json of a run.")],
    register: Annotated[
        Path,
        typer.Option(help="The register of keys that you trust: in your kit, or in the run of a simulation."),
    ],
    bank: Annotated[
        Path | None, typer.Option(help="A bank that must no longer hold the deleted entries.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check a receipt of unlearning: the signatures under the deletion of an institution's part.

    For example: casam audit receipt RUN/receipts/NAME-stage-2.json --register register.json
    """
    import json

    from casam_core.bank.bank import Bank
    from casam_core.protocol.audit import AuditError
    from casam_core.protocol.register import read_register

    if not file.is_file():
        raise AuditError(f"{file}: expected a receipt of unlearning, found no file; check the path")
    keys = read_register(register)
    from scenarios.inspection.verify import faults_in_receipt

    digests = []
    if bank is not None:
        opened = Bank.open(bank)
        digests = [opened.digest_of(task) for task in opened.tasks]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        faults = faults_in_receipt(content, keys, digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"{file}: expected a receipt of unlearning; the file cannot be read") from error
    if json_:
        print_json({"consistent": not faults, "faults": faults, "receipt": content})
    for fault in [] if json_ else faults:
        typer.echo(f"tampered: {fault}")
    if faults:
        raise typer.Exit(TAMPERED)
    if json_:
        return
    gone = [*content["deleted"], *content["retrained"]]
    typer.echo(
        f"consistent: {content['institution']} left at stage {content['stage']}; deleted or retrained: "
        f"{', '.join(gone) or 'nothing'}; signed by the server and {len(content['purged'])} institutions"
    )
    typer.echo(content["not_covered"])


ledger_app = typer.Typer(no_args_is_help=True, help="Read an institution's privacy ledger.")


@ledger_app.command("show")
def show_ledger(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A ledger.jsonl.")],
    delta: Annotated[float, typer.Option(min=1e-12, max=0.5, help="Delta of the policy's budget.")] = 1e-3,
    json_: Json = False,
) -> None:
    """List every release with noise: what it would cost alone, and the total of its dataset and split.

    For example: casam ledger show RUN/institutions/NAME/private/ledger.jsonl --delta 1e-4
    """
    from casam_core.errors import PolicyError

    if not file.is_file():
        raise PolicyError(
            f"{file}: expected a ledger.jsonl, found no file; check the path (a site that sent nothing with "
            "noise has none)"
        )
    from casam_core.privacy.accounting import epsilon_of
    from client.release.ledger import Ledger, of_images

    spends = Ledger(file).lines()
    heads = ["time", "run", "kind", "task", "split", "unit", "noise", "rate", "steps", "alone"]
    rows = [[*heads, f"epsilon at {delta:g}"]]
    for number, spend in enumerate(spends, 1):
        before = of_images(spends[:number], spend.dataset, spend.split, spend.division)
        rows.append(
            [
                spend.time,
                spend.run,
                spend.kind,
                spend.task,
                spend.split,
                spend.unit,
                f"{spend.noise_multiplier:.3f}",
                f"{spend.sample_rate:g}",
                str(spend.steps),
                f"{epsilon_of([spend.mechanism], delta):.3f}",
                f"{epsilon_of([s.mechanism for s in before], delta):.3f}",
            ]
        )
    if json_:
        print_json([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
        return
    for text in plain_columns(rows) if spends else ["no release with noise"]:
        typer.echo(text)
