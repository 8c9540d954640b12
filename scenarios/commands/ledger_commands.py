"""`casam ledger`: what an institution's private releases have cost so far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.terminal import plain_columns

ledger_app = typer.Typer(no_args_is_help=True, help="Read an institution's privacy ledger.")


@ledger_app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A ledger.jsonl.")],
    delta: Annotated[float, typer.Option(min=1e-12, max=0.5, help="Of the policy's budget.")] = 1e-3,
) -> None:
    """Every private release with the epsilon of its dataset and split after it."""
    from casam_core.errors import PolicyError
    from casam_core.privacy.accounting import epsilon_of
    from client.release.ledger import Ledger, of_dataset

    if not file.is_file():
        raise PolicyError(f"{file}: expected a ledger.jsonl, found no file; check the path")
    spends = Ledger(file).lines()
    rows = [
        ["time", "run", "kind", "task", "split", "unit", "noise", "rate", "steps", f"epsilon at {delta:g}"]
    ]
    for number, spend in enumerate(spends, 1):
        before = of_dataset(spends[:number], spend.dataset, spend.split)
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
                f"{epsilon_of([s.mechanism for s in before], delta):.3f}",
            ]
        )
    for text in plain_columns(rows):
        typer.echo(text)
