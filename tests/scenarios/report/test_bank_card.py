"""The card of a bank: its figures are the summary's, and its limits follow from the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from casam_core.bank.bank import Bank
from casam_core.errors import BankError, RunInputError
from scenarios.report.bank_card import FILE, card, write_card
from tests.casam_command import Casam
from tests.conftest import tiny_table, with_policies
from tests.opened import opened_below
from tests.runs import FinishedRun, summary_of

DP = {
    "adapter": {"noise": "dp"},
    "router": {"share": "never"},
    "metrics": "never",
    "budget": {"epsilon": 3.0, "delta": 0.01},
}


def table(text: str, number: int) -> dict[str, list[str]]:
    """The rows of a card's table, by their first cell; tables are counted from 0."""
    tables: list[dict[str, list[str]]] = []
    cells: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append({})
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "tr_close":
            tables[-1][cells[0]] = cells[1:]
    return tables[number]


def test_entries_have_the_summarys_figures(finished_run: FinishedRun) -> None:
    run = finished_run(tiny_table())
    text, summary = card(run), summary_of(run)
    entries, bank = table(text, 0), Bank.open(run / "bank")
    assert text.startswith(f"# Card: tiny, bank {bank.digest[:12]}\n")
    for task, last in zip(summary["tasks"], summary["matrix"]["iou"][-1], strict=True):
        _, trained_by, images, _, frozen, iou, _, _ = entries[task]
        assert trained_by == " and ".join(summary["holders"][task])
        assert images == str(bank[task].provenance.images)
        assert (frozen, iou) == (f"{summary['zero_shot']['iou'][task]:.3f}", f"{last:.3f}")
    environment = table(text, 2)
    assert environment["seed"] == ["0"]
    assert environment["scenario's digest (SHA-256)"] == [summary["scenario_digest"]]


def test_policies_and_limits_follow_from_the_run(finished_run: FinishedRun) -> None:
    text = card(finished_run(with_policies(tiny_table(), north=DP)))
    policies = table(text, 1)
    assert policies["north"][0].startswith("shares layers with noise; keeps its routers; shares no scores")
    assert "of 3" in policies["north"][1]
    limits = text.partition("## Limits")[2].partition("##")[0]
    assert "No router can choose these entries, a person must name the task: polyp." in limits
    assert "The privacy noise is seeded" in limits
    assert "Some scores are missing" in limits
    open_run = card(finished_run(tiny_table())).partition("## Limits")[2]
    assert "No router can choose" not in open_run
    assert "seeded" not in open_run


def test_who_left_and_what_was_learned_again(finished_run: FinishedRun) -> None:
    leaves = {"leaves_at": 2, "on_leave": "unlearn"}
    text = card(finished_run(with_policies(tiny_table(), north=leaves)))
    assert "north left at stage 2. Deleted: polyp." in text


@pytest.mark.parametrize("method", ["frozen", "sequential"])
def test_other_methods_have_a_card_too(finished_run: FinishedRun, method: str) -> None:
    text = card(finished_run(tiny_table(method=method)))
    assert "## How to make it again" in text
    if method == "frozen":
        assert ", the same as frozen SAM's" in text
    else:
        summary = summary_of(finished_run(tiny_table(method=method)))
        assert "one alignment layer for all tasks" in text
        assert "No router can choose" not in text  # the method has none, whatever the holders share
        assert table(text, 0)["shared"][5] == f"{summary['last_iou']:.3f}"


def test_a_card_says_who_can_use_the_bank(finished_run: FinishedRun, casam: Casam) -> None:
    assert "Use it with `casam predict` or `casam studio`." in card(finished_run(tiny_table()))
    for form in ("decoder", "lora"):
        run = finished_run(tiny_table(stream=["polyp"], alignment={"form": form}))
        assert f"Only `casam run` and `casam compare` can use layers of the form {form}." in card(run)
        said = casam("bank", "export-onnx", run, "--out", "onnx").refusal
        assert f"alignment.form '{form}' changes SAM itself" in said
        assert "restore" not in said


def test_only_the_servers_files_are_opened(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run(tiny_table()), tmp_path / "run")
    with opened_below(tmp_path) as opened:
        write_card(run)
    assert (run / FILE).read_text() == card(run)
    assert not [path for path in opened if "private" in str(path)]


def test_a_folder_without_a_finished_run_gets_no_card(
    casam: Casam, finished_run: FinishedRun, tmp_path: Path
) -> None:
    with pytest.raises(RunInputError):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []
    run = shutil.copytree(finished_run(tiny_table()), tmp_path / "run")
    (run / "bank" / "manifest.json").write_text("{}")
    with pytest.raises(BankError):
        write_card(run)
    done = casam("card", str(run))
    assert done.status == 2
    assert not (run / FILE).exists()
