"""The page: what stands on it, by hand-made runs; that it asks for nothing and reads nothing private."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casam_core.config.policy import Policy
from casam_core.config.toml import read_scenario
from casam_core.protocol.outcomes import NoResult, Outcome
from scenarios.report import words
from scenarios.report.drawing import cleaned
from scenarios.report.page import page
from scenarios.report.parts import step_of
from scenarios.report.reading import Found, read_all, read_run
from scenarios.report.sections.costs import bytes_by_stage
from scenarios.report.sections.quality import verdict
from scenarios.report.sections.record import ranges
from tests.opened import opened_below
from tests.scenarios.report.looking import Outline, changed, shown
from tests.scenarios.report.making import scenario_of, statistics, write_run

CANARY = "CANARY-8f1c-of-a-patient"


@pytest.fixture(scope="module")
def both(runs: Path) -> str:
    """The comparison of two, without their own parts."""
    return page(read_all([runs / "one", runs / "two"]), full=False)


def test_every_section_is_there(html: str) -> None:
    for heading in (
        "The continual matrix",
        "Is anything forgotten?",
        "What is gained over frozen SAM",
        "Where images were sent",
        "Which images count as unknown",
        "How far from the threshold",
        "Policy and ledger by institution",
        "Privacy budgets",
        "Bytes from the institutions",
        "Bytes to the institutions",
        "Where the time went",
        "Timeline: what each institution did",
        "Refusals and faults",
        "Environment",
        "casam run scenario.json --out NEW_FOLDER",
    ):
        assert heading in shown(html), heading


def test_intervals_are_read_out_in_words(html: str) -> None:
    text = shown(html)
    assert "+18.0 +13.0 to +23.0 better than frozen SAM" in text
    assert f"+1.0 {words.MINUS}3.0 to +5.0 no clear difference" in text
    assert "too few units for an interval" in text
    assert verdict(-0.2, -0.1) == "worse than frozen SAM"


def test_seeded_noise_is_never_called_protection(html: str) -> None:
    assert "Privacy noise: seeded (simulated, protects nobody)." in shown(html)
    assert "this simulates the cost and gives no protection" in shown(html)


def test_the_ledger_by_hand(html: str) -> None:
    text = shown(html)
    assert (
        "shares layers with noise; shares routers with noise; shares scores with noise 2.25 of 3 4.00 of 5"
        in text
    )
    assert f"1 {words.TIMES} router not shared" in text


def test_noise_on_a_part_is_no_limit(tmp_path: Path) -> None:
    """Routers without noise reveal what they will, whatever the noisy layers spent."""

    def half(summary: dict[str, Any]) -> None:
        summary["privacy"]["south"]["policy"]["router"]["noise"] = "none"
        summary["privacy"]["south"]["epsilon_train"] = None  # as the institution tells it

    text = changed(tmp_path, half)
    assert "shares routers; shares scores with noise no limit (a part has no noise)" in text
    assert "0.00 of 3" not in text
    assert "south training images" not in text  # of the budgets
    assert "south test images 4.00 5 1.00" in text


def test_each_chart_has_a_sentence_and_a_table(html: str) -> None:
    outline = Outline(html)
    pictures = [a for a in outline.all("div") if a.get("role") == "img"]
    assert len(pictures) == len(outline.all("svg")) >= 11
    assert all(len(a.get("aria-label") or "") > 20 for a in pictures)
    assert all(a.get("aria-hidden") == "true" for a in outline.all("svg"))
    assert html.count("<figure") == html.count("The numbers as a table") == html.count("</figure>")


def test_a_heat_map_is_a_table_whose_cells_have_the_colour_of_their_figure(html: str) -> None:
    matrix = html[html.index("The continual matrix") :]
    cells = re.findall(r'<td class="number(?: step-(\d))?">\s*([^<\s]+)', matrix[: matrix.index("</table>")])
    # frozen SAM, then a row for every stage; 0.4, 0.5, ... 0.9 are the edges of the seven colours
    assert cells[:3] == [("3", "0.600"), ("3", "0.650"), ("5", "0.850")]
    assert cells[3:6] == [("5", "0.800"), ("", words.MISSING), ("", words.MISSING)]
    assert cells[9:] == [("4", "0.780"), ("4", "0.700"), ("6", "0.900")]
    assert html.count('class="heat"') == 4  # the matrix, the routes, bytes in both directions


def test_it_asks_for_nothing(both: str, html: str) -> None:
    for text in (both, html):
        outline = Outline(text)
        assert not {"script", "link", "img", "iframe", "object", "use"} & {tag for tag, _ in outline.tags}
        assert "default-src 'none'" in text
        # Names of XML's own kinds are no addresses.
        assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"url\((?!#)|@import", text)
        assert all((a.get("href") or "#").startswith("#") for a in outline.all("a"))


def test_ids_are_unique_and_links_lead_somewhere(runs: Path) -> None:
    outline = Outline(page(read_all([runs / "one", runs / "two"]), full=True))
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in outline.all("a")} <= set(ids)


def test_two_runs_stand_side_by_side_with_their_differences(both: str, runs: Path) -> None:
    text = shown(both)
    assert "seed 0 1" in text  # the one key that was changed
    assert "0.793 0.830+0.037, better" in text
    assert "forgetting, points 1.00 1.00the same" in text
    assert "It is 0.900 for tasks that resemble learned ones." in shown(
        page(read_all([runs / "one"]), full=True)
    )
    assert "right after learning 0.800 0.800the same" in text
    assert "forward transfer, points +1.2 +1.2the same" in text
    assert "The continual matrix" not in text  # a run's own part


def test_means_over_other_scores_are_not_compared(tmp_path: Path) -> None:
    """A mean without the worst task is higher, and no better."""
    whole = write_run(tmp_path / "whole")
    part = write_run(tmp_path / "part", last_iou=0.9, complete={"last_iou": False, "avg_iou": True})
    text = shown(page(read_all([whole, part]), full=False))
    assert "IoU at the end 0.793 0.900not comparable" in text
    assert "routed to their task 96.4 % 96.4 %not comparable" in text
    assert "average IoU 0.781 0.781the same" in text
    two = write_run(tmp_path / "two", tasks=["polyp", "histology", "nuclei"], statistics={})
    text = shown(page(read_all([whole, two]), full=False))
    assert "average IoU 0.781 0.781not comparable" in text  # another task is in it
    assert "heart · cardiac_mr 0.900gain +5.0 not told" in text


def test_a_task_that_an_institution_does_not_hold_is_not_called_untold(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", statistics={"north": {"histology": statistics(0.7, 0.1, None)}})
    text = shown(page(read_all([one, other]), full=False))
    assert "north · polyp 0.780gain +18.0 (+13.0 to +23.0) not told" in text
    assert "north · histology not there 0.700gain +10.0" in text


SUMMARY = """# Study dp

What it costs <to all>.

2 of 3 runs finished, seeds 0, 1.
- eps3-s2 failed: no disk

## What does noise cost?

| noise | IoU at the end | cost or gain | p (Holm) |
| --- | --- | --- | --- |
| none | 79.0 | baseline |  |
| dp | 75.0 | -4.0 [-5.0, -3.0] | 0.010 |

- **dp** costs 4.0 points of mean IoU against none: significant (p = 0.010, 2 seeds).
"""
"""As scenarios/study/text.py writes it."""


def test_a_studys_page_leads_with_its_verdicts(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "study" / "runs" / f"s{seed}", scenario_of(seed=seed))
    (tmp_path / "study" / "summary.md").write_text(SUMMARY)
    html = page(read_all([tmp_path / "study"]), full=False)
    text = shown(html)
    verdict_ = "What does noise cost? dp costs 4.0 points of mean IoU against none: significant"
    order = [
        "What study study found",
        "Not finished: eps3-s2 failed: no disk",
        verdict_,
        "none 79.0 baseline dp 75.0 -4.0 [-5.0, -3.0] 0.010",
        "# Study dp What it costs <to all>.",  # the text itself, unchanged
        "Headline figures",
    ]
    assert sorted(order, key=text.index) == order
    assert '<td class="number">-4.0 [-5.0, -3.0]</td>' in html


def test_pictures_are_linked_and_never_embedded(tmp_path: Path) -> None:
    scenario = scenario_of(evaluation={"overlays": 4})
    html = page(read_all([write_run(tmp_path / "one", scenario)]), full=True)
    links = [a["href"] for a in Outline(html).all("a") if not (a["href"] or "#").startswith("#")]
    assert links == [
        f"institutions/{site.name}/private/overlays/index.html" for site in scenario.institutions
    ]
    assert "<img" not in html


def test_markup_from_a_run_is_text_on_the_page(tmp_path: Path) -> None:
    scenario = scenario_of(description="<script>alert(1)</script>")
    html = page(Found((read_run(write_run(tmp_path / "one", scenario), "<b>"),)), full=True)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html


def test_the_same_run_gives_the_same_bytes(runs: Path, html: str, draw_anew: Callable[[], None]) -> None:
    draw_anew()
    assert page(read_all([runs / "one"]), full=True) == html


@pytest.mark.parametrize("private", ["removed", "filled", "unreadable"])
def test_nothing_private_is_read(runs: Path, tmp_path: Path, html: str, private: str) -> None:
    folder = write_run(tmp_path / "one")
    if private != "removed":
        for name in ("north", "south"):
            inside = folder / "institutions" / name / "private"
            inside.mkdir(parents=True)
            for file in ("routes.jsonl", "audit.jsonl", "ledger.jsonl", "summary.json", "events.jsonl"):
                (inside / file).write_text(CANARY)
            if private == "unreadable":
                inside.chmod(0)
    again = page(read_all([folder]), full=True)
    assert again == html
    assert CANARY not in again


def test_only_the_documented_files_are_opened(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    (folder / "institutions" / "north" / "private").mkdir(parents=True)
    with opened_below(tmp_path) as opened:
        page(read_all([folder]), full=True)
    names = ("summary.json", "scenario.json", "events.jsonl", "audit.jsonl")
    assert opened == {f"one/{name}" for name in names}


def test_missing_cells_are_said(tmp_path: Path) -> None:
    def silent(summary: dict[str, Any]) -> None:
        summary["matrix"]["iou"][2][0] = None
        summary["complete"]["last_iou"] = False
        summary["privacy"]["north"]["refusals"] = {"metrics-not-shared": 3}

    text = changed(tmp_path, silent)
    assert (
        "Some scores are missing (not shared by north). These figures are means over the known scores" in text
    )
    assert "cannot be compared with complete ones: last" in text
    assert "points above frozen SAM" not in text  # means over other tasks are not compared


def test_orders_of_their_own_have_no_stage_of_a_task(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", complete={"last_iou": True, "avg_iou": False}, avg_iou=None)
    path = folder / "scenario.json"
    scenario = json.loads(path.read_text())
    scenario["institutions"][0]["stream"] = ["polyp"]
    path.write_text(json.dumps(scenario))
    text = shown(page(read_all([folder]), full=True))
    assert "Institutions learned in orders of their own, so a stage is not that of one task" in text
    assert "Some scores are missing" not in text  # an average does not exist, and no score is missing
    assert "right after learning at the end" not in text
    assert "institution 0. frozen SAM stage 1 stage 2 stage 3" in text  # who did what
    assert "1. polyp" not in text


def test_an_institution_that_told_no_scores_is_why_a_cell_is_empty(tmp_path: Path) -> None:
    """It may have left, or its answer was lost: only its policy says that it does not share them."""

    def gone(summary: dict[str, Any]) -> None:
        summary["matrix"]["iou"][2][0] = None

    assert "Missing: 1, because an institution told no scores then." in changed(tmp_path, gone)


def test_a_run_of_one_stage_without_a_router(tmp_path: Path) -> None:
    def bare(summary: dict[str, Any]) -> None:
        summary["matrix"] = {name: rows[:1] for name, rows in summary["matrix"].items()}
        summary["ff_iou"] = summary["bwt_iou"] = None
        summary["routing"] = dict.fromkeys(
            ("accuracy", "confusion", "false_unknown_rate", "unseen_unknown_rate", "auroc", "fpr95")
        )
        summary["unseen"] = {"tasks": [], "zero_shot": {}, "iou": [{}], "unknown_rate": [{}]}
        summary["statistics"] = {}
        summary["timing"]["stages"] = summary["timing"]["stages"][:1]

    text = changed(tmp_path, bare)
    assert "Method casam routes no image." in text
    assert "no interval released" in text


def test_a_task_that_nobody_taught_is_not_counted_as_learned(tmp_path: Path) -> None:
    """Its images count as unknown, and rightly so: the margins do not explain it."""

    def refused(summary: dict[str, Any]) -> None:
        summary["holders"]["cardiac_mr"] = []
        summary["routing"]["confusion"]["cardiac_mr"] = {"identity": 8}
        summary["routing"]["false_unknown_rate"] = 9 / 28

    text = changed(tmp_path, refused)
    assert "32.1 % of the images of the stream's tasks count as unknown" in text
    assert "No router can choose cardiac_mr. For other tasks, the margins" in text
    assert "cardiac_mr (not learned)" in text
    assert f"cardiac_mr not learned {words.MISSING} {words.MISSING} 0 %" in text


def test_what_the_server_says_of_anonymity_and_unlearning(tmp_path: Path) -> None:
    def unlearned(summary: dict[str, Any]) -> None:
        summary["privacy"]["north"]["anonymity"] = {"adapter": {"server": 3, "co_holder": 2}}
        summary["unlearned"] = [
            {
                "institution": "north",
                "stage": 3,
                "deleted": ["polyp"],
                "retrained": [],
                "bank_before": "a" * 64,
                "bank_after": "b" * 64,
                "iou_before": {"polyp": 0.8},
                "iou_after": {"polyp": 0.6},
            }
        ]

    text = changed(tmp_path, unlearned)
    assert "north adapter 3 2 hidden in a sum" in text
    assert "north left at stage 3 and asked to be unlearned: the bank deleted polyp." in text
    assert f"polyp 0.800 0.600 {words.MINUS}0.200" in text


def test_bytes_of_a_stage_are_differences_of_totals(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"), "one")
    assert bytes_by_stage(run, "up")["north"] == {1: 5_000, 2: 5_000, 3: 5_000}
    assert bytes_by_stage(run, "up")["west"] == {2: 10_000, 3: 5_000}


def test_the_scenario_on_the_page_gives_the_same_digest(tmp_path: Path, html: str) -> None:
    text = re.findall(r"<code>(\{.*?\})</code>", html, re.DOTALL)[0].replace("&#34;", '"')
    (tmp_path / "scenario.json").write_text(text)
    assert read_scenario(tmp_path / "scenario.json").digest() == scenario_of().digest()


def test_every_outcome_has_words() -> None:
    assert set(words.OUTCOMES) == {*Outcome, *NoResult}


def test_policies_in_words() -> None:
    policy = Policy.model_validate(
        {
            "adapter": {"aggregation": "secagg"},
            "router": {"share": "never"},
            "metrics": "never",
            "joins_at": 1,
            "leaves_at": 3,
            "on_leave": "unlearn",
            "max_bytes": 2_000_000,
        }
    )
    assert words.policy_in_words(policy) == (
        "shares layers, in secure sums only",
        "keeps its routers",
        "shares no scores",
        "secure sums need 3 institutions or more",
        "joins at stage 1",
        "leaves at stage 3, and its contributions are deleted",
        "sends 2.0 MB at most",
    )


def test_numbers_as_people_write_them() -> None:
    assert [words.size(n) for n in (0, 999, 1_400, 123_456, 5e9)] == [
        "0 B",
        "999 B",
        "1.4 kB",
        "123 kB",
        "5.0 GB",
    ]
    assert [words.signed(v) for v in (0.0, 0.0001, -0.5)] == ["0.000", "0.000", f"{words.MINUS}0.500"]
    assert [words.percent(v) for v in (None, 0.0, 0.0004, 0.25, 1.0)] == [
        words.MISSING,
        "0 %",
        "< 0.1 %",
        "25 %",
        "100 %",
    ]
    assert [words.duration(s) for s in (1.25, 42, 200, 7500)] == ["1.2 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert ranges([0, 1, 2, 5]) == f"0{words.DASH}2, 5"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdefgh"), most=2) == "a, b and 6 more"
    assert [step_of(value, (0.4, 0.5)) for value in (0.39, 0.4, 0.9)] == [0, 1, 2]


def test_a_picture_loses_its_roles_and_keeps_what_they_said_as_a_tooltip() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><clipPath id="clip7"/><path clip-path="url(#clip7)" '
        'role="graphics-symbol" aria-roledescription="bar" aria-label="axis"/>'
        '<path role="graphics-symbol" aria-roledescription="rect mark" aria-label="polyp: 0.8"/></svg>'
    )
    out = cleaned(svg, "r1")
    assert 'id="r1-0"' in out
    assert "url(#r1-0)" in out
    assert "role=" not in out
    assert out.count("<title>") == 1
    assert "<title>polyp: 0.8</title>" in out
