"""The public API: a run without a console, its figures typed, its bank in use."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casam
from casam_core.errors import BankError, CasamError, DataError, PromptError, ScenarioError
from tests.banks import tiny_backbone, tiny_bank
from tests.conftest import tiny_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[casam.Run, list[dict[str, Any]]]:
    """A tiny run, and what was told while it ran."""
    told: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("api") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASAM_HOME", str(tmp_path_factory.mktemp("home")))
        run = casam.run(tiny_table(), out=out, set={"training.epochs": 2}, on_event=told.append)
    return run, told


def test_a_run_gives_its_figures_typed(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    run, _ = finished
    assert run.summary.tasks == ["polyp", "histology"]
    assert run.summary.last_iou is not None
    assert 0 <= run.summary.last_iou <= 1
    assert casam.load_run(run.folder).summary == run.summary


def test_every_event_is_told_once_and_in_order(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    run, told = finished
    assert told == list(run.events())
    assert [event["event"] for event in told][-1] == "end"


def test_a_run_whose_server_lost_power_at_its_end_tells_its_events(
    finished: tuple[casam.Run, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run, told = finished
    cut = replace(run, folder=tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "events.jsonl").write_bytes((run.folder / "events.jsonl").read_bytes()[:-5])
    assert [event["event"] for event in cut.events()] == [event["event"] for event in told]


def test_a_run_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    casam.run(tiny_table(stream=["polyp"]), out=tmp_path / "run")
    assert capfd.readouterr().out == ""


def test_what_the_listener_raises_is_raised_when_the_run_has_ended(tmp_path: Path) -> None:
    def listener(event: dict[str, Any]) -> None:
        raise RuntimeError(event["event"])

    with pytest.raises(RuntimeError, match="start"):
        casam.run(tiny_table(stream=["polyp"]), out=tmp_path / "run", on_event=listener)
    assert casam.load_run(tmp_path / "run").summary.status == "completed"


def test_its_bank_segments(finished: tuple[casam.Run, list[dict[str, Any]]]) -> None:
    bank = casam.load_bank(finished[0].bank)
    segmenter = casam.Segmenter(casam.backbone_for(bank), bank)
    image = np.full((64, 64, 3), 128, np.uint8)
    assert segmenter.predict(image, [(8, 8, 40, 40)]).masks_NHW.shape == (1, 64, 64)


def test_the_bank_of_one_layer_for_all_tasks_is_that_of_the_last_stage(tmp_path: Path) -> None:
    run = casam.run(tiny_table(method="sequential"), out=tmp_path / "run", set={"training.epochs": 1})
    assert list(casam.load_bank(run.bank)) == ["shared"]


def test_a_table_at_fault_is_refused_with_its_key() -> None:
    with pytest.raises(ScenarioError, match="task 'liver' of the stream is held by no institution"):
        casam.Scenario.from_dict(tiny_table(stream=["liver"]))
    with pytest.raises(ScenarioError, match="unknown key 'traning'"):
        casam.run(tiny_table(), set={"traning.epochs": 3})


def test_a_scenario_of_the_library_is_found_by_its_name() -> None:
    assert casam.Scenario.load("quickstart", ["seed=7"]).seed == 7


def test_importing_casam_imports_no_torch() -> None:
    code = "import sys, casam; print(sorted({'torch', 'flwr', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bank_is_a_mapping(tmp_path: Path) -> None:
    bank = casam.load_bank(tiny_bank(tmp_path / "bank").folder)
    assert "polyp" in bank
    assert "liver" not in bank
    assert bank.get("liver") is None
    with pytest.raises(BankError, match=r"^no entry for task 'liver'; the bank holds: polyp, histology$"):
        bank["liver"]


def test_an_unknown_engine_and_a_wrong_number_of_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="engine: expected simulation or inprocess, found 'ray'"):
        casam.run(tiny_table(), out=tmp_path / "run", engine="ray")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    with pytest.raises(ScenarioError, match="1 to 256 threads, found 'auto' and 0"):
        casam.load_backbone("tiny", threads=0)


IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
LABELS = np.zeros((48, 64), np.int32)
LABELS[10:30, 20:44] = 1


@pytest.mark.parametrize(
    ("image", "labels", "options", "kind", "words"),
    [
        (IMAGE / 255, LABELS, {}, PromptError, r"images\[1\]: expected uint8 .* found float64"),
        (IMAGE[..., 0], LABELS, {}, PromptError, r"images\[1\]: expected uint8"),
        (IMAGE, LABELS[:40], {}, DataError, r"labels\[1\]: expected the height and width of its image"),
        (IMAGE, LABELS[..., None], {}, DataError, r"labels\[1\]: expected the height and width"),
        (IMAGE, LABELS * 0.6, {}, DataError, r"labels\[1\]: expected whole-number labels"),
        (IMAGE, -LABELS, {}, DataError, r"labels\[1\]: expected labels of 0"),
        (IMAGE, LABELS, {"epochs": 0}, ScenarioError, "training: epochs"),
        (IMAGE, LABELS, {"form": "lora"}, ScenarioError, "form: expected a layer between encoder and"),
        (IMAGE, LABELS, {"form": "decoder"}, ScenarioError, "form: expected a layer between encoder and"),
    ],
)
def test_train_layer_refuses_what_it_would_learn_nothing_from(
    image: Any, labels: Any, options: dict[str, Any], kind: type[CasamError], words: str
) -> None:
    with pytest.raises(kind, match=words) as refused:
        casam.train_layer([IMAGE, image], [LABELS, labels], tiny_backbone(), **{"epochs": 1, **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("images", "labels"), [([], []), ([IMAGE], [LABELS * 0])])
def test_train_layer_needs_an_instance(images: list[Any], labels: list[Any]) -> None:
    with pytest.raises(DataError, match="labels: expected an instance in one image or more"):
        casam.train_layer(images, labels, tiny_backbone(), epochs=1)


def test_the_numbers_of_instances_do_not_matter() -> None:
    other = LABELS * 7
    other[40:46, 2:9] = 2**20  # the second of two instances, whatever they are called
    first = np.where(other == 7, 1, np.where(other > 0, 2, 0))
    layers = [casam.train_layer([IMAGE], [each], tiny_backbone(), epochs=1) for each in (other, first)]
    one, two = (layer.state_dict() for layer in layers)
    assert all((one[name] == two[name]).all() for name in one)


def test_a_segmenter_takes_one_image_and_its_own_embedding(tmp_path: Path) -> None:
    segmenter = casam.Segmenter(tiny_backbone(), casam.load_bank(tiny_bank(tmp_path / "bank").folder))
    for image in (np.zeros((0, 5, 3), np.uint8), "image.png", IMAGE.tolist()):
        with pytest.raises(PromptError, match="image: expected uint8 of shape"):
            segmenter.predict(image, [(1, 1, 5, 5)])  # type: ignore[arg-type]
    z_1CHW = segmenter.embed(IMAGE)
    for z in (z_1CHW[0], z_1CHW.repeat(2, 1, 1, 1), z_1CHW[..., :3]):
        with pytest.raises(PromptError, match="embedding: expected z_1CHW"):
            segmenter.predict(IMAGE, [(1, 1, 5, 5)], embedding=z)
