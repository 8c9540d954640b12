"""Every strategy merges the layers of two holders in a whole run: messages, guards, admission, bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from server.aggregation import STRATEGIES
from tests.conftest import tiny_table
from tests.runs import FinishedRun, events

OTHERS = sorted(STRATEGIES.keys() - {"fedavg", "scaffold"})


def table(strategy: str) -> dict[str, Any]:
    """South and west learn one task together in three rounds."""
    made = tiny_table(stream=["histology"])
    return made | {"training": made["training"] | {"rounds": 3, "strategy": strategy}}


def entry(finished_run: FinishedRun, strategy: str) -> Entry:
    """The task's entry, of a run in which nobody refused and nothing was rejected."""
    run = finished_run(table(strategy))
    assert not [line for kind in ("refusal", "rejected", "no-result") for line in events(run, kind)]
    return Bank.open(run / "bank")["histology"]


@pytest.mark.parametrize(
    "strategy", ["scaffold", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_strategy_merges_what_its_holders_sent(finished_run: FinishedRun, strategy: str) -> None:
    merged, mean = entry(finished_run, strategy), entry(finished_run, "fedavg")
    assert merged.provenance.holders == mean.provenance.holders == ("south", "west")
    assert not np.array_equal(merged.layer["up_CR"], mean.layer["up_CR"])
    assert all(np.isfinite(value).all() for value in merged.layer.values())
