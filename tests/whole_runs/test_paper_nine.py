"""The paper's scenario: says what is missing, and runs through on stand-ins in the authors' layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casam_bench.card.paper_data import SIZES
from casam_bench.card.paper_data import main as make_data
from casam_bench.models import SMALL, random_vit
from casam_core.config.library import resolve_scenario
from casam_core.config.named_parts import BackboneSpec
from casam_core.errors import DataError
from casam_core.files import sha256_of_file
from casam_core.model.backbones import BACKBONES, Backbone, BackboneEntry
from casam_core.model.backbones.sam import read_checkpoint
from casam_core.model.compute import Compute
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.preflight import preflight
from tests.casam_command import Casam
from tests.client.data.readers.test_med_datasets import tiny

ORDER = ("acdc", "ebhi-seg", "56nx", "dn", "polyp", "msd_prostate", "msd_spleen", "promise12", "sts-2d")


def test_it_lists_everything_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        preflight(resolve_scenario("paper-nine"), tmp_path)
    first, *faults = str(caught.value).splitlines()
    assert first == "10 things are missing or broken:"
    assert "sam_vit_b_01ec64.pth" in faults[0]
    for name, fault in zip(("ACDC", "EBHI-SEG", "56Nx", "DN", "Polyp"), faults[1:], strict=False):
        assert str(tmp_path / name) in fault


def test_it_is_the_papers_setting() -> None:
    scenario = resolve_scenario("paper-nine")
    assert tuple(scenario.stream) == ORDER
    assert (scenario.alignment.form, scenario.alignment.learning_rate) == ("casam", 1e-4)
    assert (scenario.training.epochs, scenario.training.batch_images, scenario.training.instances) == (
        24,
        6,
        5,
    )
    assert scenario.training.prompts == "mixed"
    assert (scenario.training.keep_best, scenario.training.far_cells) == (False, "all")
    assert scenario.training.objective == "official"
    assert (
        not scenario.training.fallback_to_identity
    )  # a layer below frozen SAM is a result there, not a mistake
    router = scenario.router
    assert (router.kind, router.features, router.beta, router.epochs) == ("vae", "attention", 16.5, 10)
    assert (router.folds, router.percentile, router.margin) == (5, 97, 0)


@pytest.mark.parametrize(("order", "expected"), [("reversed", ORDER[::-1]), ("given", ORDER)])
def test_the_order_is_one_option(order: str, expected: tuple[str, ...]) -> None:
    scenario = resolve_scenario("paper-nine", [f"order={order}"])
    assert tuple(scenario.stream) == expected
    assert scenario.order == "given"  # the stream is resolved; what is sent is turned round once only


def test_shuffles_are_seeded_and_do_not_depend_on_the_written_order() -> None:
    def shuffled(*settings: str) -> list[str]:
        return resolve_scenario("paper-nine", ["order=shuffled", *settings]).stream

    assert shuffled("seed=1") == shuffled("seed=1")
    assert shuffled("seed=1") != shuffled("seed=2")
    assert sorted(shuffled("seed=1")) == sorted(ORDER)


def test_it_runs_through_on_stand_ins(tmp_path: Path) -> None:
    scenario = resolve_scenario(
        "paper-nine", ["backbone={name='tiny'}", "training.epochs=1", "router.epochs=1", "router.folds=2"]
    )
    for site in scenario.institutions:
        (source,) = site.data.values()
        assert source.path is not None
        tiny(tmp_path / "data" / source.path)
    preflight(scenario, tmp_path / "data")
    run_inprocess(scenario, tmp_path / "run", tmp_path / "data")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert len(summary["matrix"]["iou"]) == 9


def small_from_file(spec: BackboneSpec, compute: Compute) -> Backbone:
    """A small SAM from a file in the form of the official ones."""
    assert spec.checkpoint is not None
    assert spec.sha256 is not None
    state = read_checkpoint(Path(spec.checkpoint), spec.sha256)
    backbone = random_vit(SMALL, compute)
    known = dict(backbone.state_dict())
    assert state.keys() == known.keys()
    backbone.load_state_dict(state)
    backbone.digest = spec.sha256
    return backbone


def test_the_command_runs_on_a_checkpoint_and_a_folder_of_the_authors_layout(
    tmp_path: Path, casam: Casam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "vit_b", BackboneEntry(small_from_file, channels=32))
    data, checkpoint = tmp_path / "data", tmp_path / "data" / "sam_vit_b_01ec64.pth"
    make_data([str(data), "--share", "10000", "--side", "64", "--model", SMALL])
    quick = ("training.epochs=1", "router.epochs=1", "router.folds=2")
    settings = [f"--set={key}" for key in (*quick, f"backbone.sha256={sha256_of_file(checkpoint)}")]
    where = ["--checkpoint", "data/sam_vit_b_01ec64.pth", "--data-root", data, "--out", "run"]
    done = casam("run", "paper-nine", *where, "--engine", "inprocess", *settings)
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], len(summary["matrix"]["iou"])) == ("completed", 9)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, casam: Casam) -> None:
    refusal = casam("run", "paper-nine", "--checkpoint", "none.pth").refusal
    assert f"--checkpoint: expected a file, found nothing at {tmp_path / 'none.pth'}" in refusal


def test_synthetic_data_has_a_folder_for_every_institution_of_the_scenario() -> None:
    named = [data.path for site in resolve_scenario("paper-nine").institutions for data in site.data.values()]
    assert named == list(SIZES)
