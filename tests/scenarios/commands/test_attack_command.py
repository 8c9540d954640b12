"""`casam attack` on finished runs: what it measures, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from casam_bench.membership.attack_run import broken_claims, figures_of, open_run, verdict
from casam_bench.membership.audit_claims import Claimed
from casam_bench.membership.canaries import Broken, Release, layer_release
from casam_bench.membership.inference_attack import LAYER_ATTACKS, ROUTER_ATTACKS
from casam_bench.membership.statistics import NOT_MEASURABLE
from casam_core.config.scenario import Scenario
from casam_core.privacy.accounting import Mechanism
from casam_core.routing.routers import ROUTERS, RouterEntry
from casam_core.routing.routers.nearest_mean import NearestMeanRouter
from client.data.splits import simulated_key
from scenarios.engines.inprocess import run_inprocess
from tests.casam_command import Casam
from tests.conftest import phantom
from tests.runs import FinishedRun

NO_AUDIT = ("--canaries", 0)


def table() -> dict[str, Any]:
    """One institution is open, one adds noise and keeps its router, one shares nothing."""
    noisy = {
        "adapter": {"noise": "dp"},
        "router": {"share": "never"},
        "budget": {"epsilon": 8.0, "delta": 0.01},
    }
    return {
        "name": "three-policies",
        "stream": ["polyp", "dental_xray", "cardiac_mr"],
        "backbone": {"name": "tiny"},
        "training": {"epochs": 1, "fallback_to_identity": False},
        "privacy": {"steps": 2},
        "router": {"kind": "gaussian"},
        "evaluation": {"max_instances": 1},
        "institutions": [
            {"name": "open", "data": {"polyp": phantom("polyp")}},
            {"name": "noisy", "data": {"dental_xray": phantom("dental_xray")}, "policy": noisy},
            {
                "name": "closed",
                "data": {"cardiac_mr": phantom("cardiac_mr")},
                "policy": {"adapter": {"share": "never"}},
            },
        ],
    }


@pytest.fixture(scope="module")
def finished(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which attacks write their audits, and tests nothing."""
    return Path(shutil.copytree(finished_run(table()), tmp_path_factory.mktemp("attacked") / "run"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_entry_is_attacked_and_what_was_not_shared_is_named(
    casam: Casam, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casam_bench.membership.inference_attack.ROUTER_SHADOWS", 4)
    file = tmp_path / "attack.json"
    ended = casam("attack", finished, "--json", file, "--shadows", 2, *NO_AUDIT)
    assert ended.status == 0, ended.err
    report = json.loads(file.read_text())
    assert {name: set(tasks) for name, tasks in report.items()} == {
        "open": {"polyp"},
        "noisy": {"dental_xray"},
        "closed": {"cardiac_mr"},
    }
    polyp = report["open"]["polyp"]
    assert set(polyp) == {*LAYER_ATTACKS, *ROUTER_ATTACKS}
    for figures in polyp.values():
        assert 0 <= figures["auc"] <= 1
        assert figures["tpr_at_1pct_fpr"] == NOT_MEASURABLE  # seven training images and five others
        assert (figures["members"], figures["non_members"]) == (7, 5)
        assert (figures["noise"], figures["epsilon"], figures["claim_holds"]) == ("none", None, None)
    # Seven images span the open router's directions: nobody needs to guess.
    assert polyp["router_read_out"]["auc"] == 1.0
    assert polyp["router_read_out"]["p_value"] < 0.01

    noisy = report["noisy"]["dental_xray"]
    for name in LAYER_ATTACKS:
        assert noisy[name]["noise"] == "dp"
        assert 0 < noisy[name]["epsilon"] <= 8
        assert noisy[name]["vacuous"] is True
    assert all("no router was shared" in noisy[name]["refused"] for name in ROUTER_ATTACKS)
    closed = report["closed"]["cardiac_mr"]
    assert {figures["refused"] for figures in closed.values()} == {
        "not shared: the bank has no entry of this task"
    }
    assert (
        f"not attacked: noisy, dental_xray ({', '.join(ROUTER_ATTACKS)}): no router was shared; "
        "the entry is used only by its task name"
    ) in ended.out
    assert "not attacked: closed, cardiac_mr" in ended.out
    assert "verdict: none of 9 attacks recognises training images" in ended.out
    assert "the largest AUC is 1.000, router_score at open, polyp" in ended.out

    again = casam("attack", finished, "--json", "-", "--institution", "noisy", "--shadows", 2, *NO_AUDIT)
    assert json.loads(again.out) == {"noisy": report["noisy"]}  # the same figures every time


def test_a_run_whose_only_wanted_part_was_not_shared_is_refused(casam: Casam, finished: Path) -> None:
    line = casam("attack", finished, "--institution", "closed").refusal
    assert line.startswith("error: nothing can be attacked. closed, cardiac_mr (layer_loss, ")
    assert line.endswith("): not shared: the bank has no entry of this task")


def test_a_real_deployments_run_is_left_to_who_holds_the_images(
    casam: Casam, run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "institutions")
    ended = casam("attack", run, "--json", tmp_path / "attack.json")
    assert "the run of a real deployment" in ended.refusal
    assert "call it at open on a copy of the run folder, with --node node.toml" in ended.err
    # A simulated split would count other images as members.
    assert casam("attack", run, "--institution", "noisy", "--data-root", tmp_path).status == 2
    assert not (tmp_path / "attack.json").exists()


def test_an_institution_attacks_its_own_part_of_a_deployments_run(
    casam: Casam, finished: Path, run: Path, tmp_path: Path
) -> None:
    """The site of the simulated run as a real one: the same images and the same key for splits."""
    shutil.rmtree(run / "institutions")
    home = tmp_path / "site"
    home.mkdir()
    (home / "split.key").write_bytes(simulated_key(Scenario.model_validate(table()).seed, "noisy"))
    (home / "policy.toml").write_text(tomli_w.dumps(table()["institutions"][1]["policy"]))
    (home / "site.toml").write_text(tomli_w.dumps({"tasks": {"dental_xray": phantom("dental_xray")}}))
    node = {
        **{key: f"{key}.pem" for key in ("authority", "key", "register", "signing_key")},
        **{"institution": "noisy", "superlink": "localhost:9092", "bundle": "0" * 64, "home": "."},
        **{"policy": "policy.toml", "site": "site.toml"},
    }
    (home / "node.toml").write_text(tomli_w.dumps(node))
    ended = casam("attack", run, "--json", "-", "--node", home / "node.toml", "--shadows", 0, *NO_AUDIT)
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    assert report.keys() == {"noisy"}
    attacks = report["noisy"]["dental_xray"]
    assert "--shadows" in attacks["layer_likelihood_ratio"]["refused"]
    assert attacks["layer_loss"]["refused"] is None
    simulated = json.loads(
        casam("attack", finished, "--json", "-", "--institution", "noisy", "--shadows", 0, *NO_AUDIT).out
    )
    assert attacks["layer_loss"]["auc"] == simulated["noisy"]["dental_xray"]["layer_loss"]["auc"]
    both = casam("attack", run, "--node", home / "node.toml", "--data-root", tmp_path)
    assert "--data-root: expected no other folder than that of --node" in both.refusal
    (home / "node.toml").write_text(tomli_w.dumps(node | {"institution": "elsewhere"}))
    other = casam("attack", run, "--node", home / "node.toml")
    assert "expected a run in which elsewhere takes part, found open, noisy, closed" in other.refusal


def test_images_that_are_not_the_runs_are_refused(casam: Casam, run: Path) -> None:
    content = json.loads((run / "scenario.json").read_text())
    content["institutions"][0]["data"]["polyp"]["images"] = 20
    (run / "scenario.json").write_text(json.dumps(content))
    line = casam("attack", run, "--institution", "open").refusal
    assert "learned from 7 images, found 12 for training" in line


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda run: (run / "summary.json").unlink(), "found no summary.json"),
        (lambda run: (run / "scenario.json").write_text("{}"), "cannot be read (ValidationError)"),
        (lambda run: (run / "summary.json").write_text('{"privacy": []}'), "expected schema 1"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(
    casam: Casam, run: Path, change: Any, fault: str
) -> None:
    change(run)
    assert fault in casam("attack", run).refusal


def test_a_method_without_an_entry_per_task_is_refused(casam: Casam, run: Path) -> None:
    content = json.loads((run / "scenario.json").read_text())
    (run / "scenario.json").write_text(json.dumps(content | {"method": "sequential"}))
    assert "method 'sequential' has no entry per task" in casam("attack", run).refusal


def test_slips_are_refused_before_any_work(casam: Casam, finished: Path, tmp_path: Path) -> None:
    assert (
        "expected a run folder, found none; as a scenario 'quikstart'" in casam("attack", "quikstart").refusal
    )
    assert "expected an even number, found 3" in casam("attack", finished, "--shadows", "3").refusal
    assert "expected the folder" in casam("attack", finished, "--json", tmp_path / "no" / "a.json").refusal
    assert (
        "expected one of open, noisy, closed, found 'west'"
        in casam("attack", finished, "--institution", "west").refusal
    )


def test_a_refuted_epsilon_is_named(finished: Path) -> None:
    import numpy as np

    from casam_bench.membership.inference_attack import Attacked
    from casam_bench.membership.statistics import attack_figures

    claim = open_run(finished, None).claims["noisy"]
    perfect = attack_figures(np.ones(10_000), np.zeros(10_000), delta=0.01, rng=np.random.default_rng(0))
    figures = figures_of("layer_loss", Attacked(perfect), claim)
    assert claim.epsilon is not None
    assert perfect.epsilon is not None
    assert figures["claim_holds"] is (perfect.epsilon <= claim.epsilon)
    weaker = figures_of("layer_loss", Attacked(perfect), type(claim)(claim.policy, 1.0))
    (line,) = broken_claims({"noisy": {"dental_xray": {"layer_loss": weaker}}})
    assert line == (
        f"noisy, dental_xray, layer_loss: epsilon is {perfect.epsilon:.2f} or more (95 %), the claim is 1.00"
    )


def test_the_verdict_is_one_sentence_that_counts_what_was_not_measurable() -> None:
    guess = {"refused": None, "auc": 0.52, "p_value": 0.3, "claim_holds": None, "vacuous": None}
    won = guess | {"auc": 0.9, "p_value": 0.0001, "claim_holds": True, "vacuous": False}
    by_chance = guess | {"auc": 0.7, "p_value": 0.009}  # below 0.01, but not with two attacks
    refused = guess | {"refused": "not shared"}
    assert verdict({"north": {"polyp": {"a": guess, "b": by_chance, "c": refused}}}) == (
        "none of 2 attacks recognises training images (p below 0.01, corrected for 2 attacks); "
        "the largest AUC is 0.700, b at north, polyp; "
        "2 of them say nothing about an epsilon: no claim, or too few images for a bound"
    )
    assert verdict({"north": {"polyp": {"a": won}}}) == (
        "1 of 1 attacks recognises training images (p below 0.01, corrected for 1 attacks); "
        "the largest AUC is 0.900, a at north, polyp; no claimed epsilon was refuted"
    )


# --- The audit of private releases ---------------------------------------------------------------------


def test_the_claims_of_a_runs_ledger_are_audited_and_stand_on_its_page(casam: Casam, run: Path) -> None:
    assert casam("attack", run, "--shadows", 0, "--canaries", 1000, "--institution", "noisy").status == 0
    audits = json.loads((run / "privacy_audit.json").read_text())
    (line,) = audits["noisy"]  # only the layer leaves with noise
    assert line["release"] == "layer"
    assert line["canaries"] == 1000
    assert line["delta"] == pytest.approx(0.5 / 1000)
    assert 0 < line["at_least"] < line["claim"]
    assert casam("report", run).status == 0
    page = (run / "report.html").read_text()
    assert "Measured lower bounds of epsilon" in page
    assert f"{line['at_least']:.2f}" in page


def test_an_institution_without_noise_has_nothing_to_audit(casam: Casam, run: Path) -> None:
    (run / "privacy_audit.json").unlink(missing_ok=True)
    ended = casam("attack", run, "--shadows", 0, "--institution", "open")
    assert "not audited: no institution made a release with noise" in ended.out
    assert not (run / "privacy_audit.json").exists()


def test_the_planned_releases_of_a_scenario_are_audited_without_a_run(casam: Casam, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(table()))
    ended = casam("attack", file, "--canaries", 1000)
    assert ended.status == 0, ended.err
    assert "noisy" in ended.out
    assert "layer" in ended.out


def test_a_claim_that_an_audit_refutes_is_an_error(
    casam: Casam, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, mechanism: Mechanism) -> Release:
        return layer_release(name, mechanism, Broken(noise=0.05))

    claimed = Claimed("train", "align", Mechanism(5.0))
    monkeypatch.setattr("casam_bench.membership.audit_claims.claims_of_ledger", lambda site: [claimed])
    monkeypatch.setattr("casam_bench.membership.audit_claims.layer_release", broken)
    ended = casam("attack", run, "--shadows", 0, "--canaries", 1000, "--institution", "noisy")
    assert ended.status == 1
    assert "error: a claimed epsilon does not hold. noisy, layer: epsilon is " in ended.err


def test_too_few_canaries_are_refused(casam: Casam, finished: Path) -> None:
    assert "expected 0, or at least 1000; found 10" in casam("attack", finished, "--canaries", 10).refusal


# --- Routers of every kind -----------------------------------------------------------------------------


def one_site(router: dict[str, Any], policy: dict[str, Any]) -> Scenario:
    site = {"name": "north", "data": {"polyp": phantom("polyp")}, "policy": policy}
    return Scenario.model_validate(
        table() | {"name": "one-site", "stream": ["polyp"], "router": router, "institutions": [site]}
    )


def router_attacks(
    casam: Casam, scenario: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The figures of the attacks on the router of a run of `scenario`, with four shadows."""
    monkeypatch.setenv("CASAM_HOME", str(folder / "home"))
    monkeypatch.setattr("casam_bench.membership.inference_attack.ROUTER_SHADOWS", 4)
    run_inprocess(scenario, folder / "run", None)
    ended = casam("attack", folder / "run", "--json", folder / "attack.json", "--shadows", 0, *NO_AUDIT)
    assert ended.status == 0, ended.err
    figures = json.loads((folder / "attack.json").read_text())["north"]["polyp"]
    return {name: figures[name] for name in ROUTER_ATTACKS}


@pytest.mark.parametrize("kind", [kind for kind, entry in ROUTERS.items() if entry.private])
def test_the_shadows_of_a_private_router_are_routers_of_its_kind(
    kind: str, casam: Casam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"router": {"noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}
    attacks = router_attacks(casam, one_site({"kind": kind}, policy), tmp_path, monkeypatch)
    for figures in attacks.values():
        assert 0 <= figures["auc"] <= 1
        assert figures["noise"] == "dp"


def test_a_router_that_brings_no_read_out_is_attacked_otherwise_and_named(
    casam: Casam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTERS, "newcomer", RouterEntry(build=NearestMeanRouter))
    attacks = router_attacks(casam, one_site({"kind": "newcomer"}, {}), tmp_path, monkeypatch)
    read_out = attacks.pop("router_read_out")
    assert read_out["refused"] == "not measurable: there is no read-out for routers of kind 'newcomer'"
    for figures in attacks.values():
        assert 0 <= figures["auc"] <= 1


def test_a_new_router_with_a_read_out_is_attacked_with_it(
    casam: Casam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = RouterEntry(build=NearestMeanRouter, read_out=lambda router, f_NF, state: (f_NF[0] * 0, f_NF))
    monkeypatch.setitem(ROUTERS, "newcomer", entry)
    attacks = router_attacks(casam, one_site({"kind": "newcomer"}, {}), tmp_path, monkeypatch)
    assert attacks["router_read_out"]["refused"] is None
    assert attacks["router_read_out"]["auc"] == 0.5  # everything of everybody: nothing to tell them apart by
