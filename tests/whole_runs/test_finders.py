"""A run that learns finders: what the bank holds, what a policy keeps, and how it is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casam import Segmenter, load_bank
from casam_core.bank.bank import Bank
from casam_core.bank.finding import Found
from casam_core.config.named_parts import LowRankSpec
from casam_core.config.scenario import Scenario
from casam_core.errors import PromptError, ScenarioError
from casam_core.model.forms import build_layer, weights_of
from casam_core.model.forms.finder import PREFIX, finds, without_finder
from casam_core.model.prompts import Prompts
from client.data.phantoms import PHANTOMS
from client.institution import Institution
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.casam_command import Casam
from tests.conftest import phantom, tiny_table, with_policies
from tests.runs import FinishedRun, summary_of

EPOCHS = {"epochs": 3, "batch_images": 4, "keep_best": False, "fallback_to_identity": False}


def table(**changes: Any) -> dict[str, Any]:
    """The tiny scenario with finders; north allows none to learn from its images."""
    with_finders = {"alignment": {"finder": True}, "training": EPOCHS}
    return with_policies(tiny_table(**with_finders, **changes), north={"finder": "never"})


@pytest.fixture
def run(finished_run: FinishedRun) -> Path:
    return finished_run(table())


def test_entries_hold_finders_and_their_layers_keep_their_bits(run: Path, finished_run: FinishedRun) -> None:
    found, plain = Bank.open(run / "bank"), Bank.open(finished_run(tiny_table(training=EPOCHS)) / "bank")
    assert finds(found["histology"].layer)
    for task in plain.tasks:
        layer = without_finder(found[task].layer)
        assert layer.keys() == plain[task].layer.keys()
        assert all(np.array_equal(layer[name], plain[task].layer[name]) for name in layer)


def test_where_the_policy_says_never_the_finder_leaves_as_it_came(run: Path) -> None:
    entry = Bank.open(run / "bank")["polyp"]
    assert not finds(entry.layer)
    own = {name: value for name, value in entry.layer.items() if name.startswith(PREFIX)}
    assert own.keys() >= {"finder.narrow.weight", "finder.out.bias"}
    assert all(not value.any() for name, value in own.items() if name.startswith("finder.out."))


def test_an_institution_without_consent_changes_nothing_in_a_shared_finder(
    finished_run: FinishedRun,
) -> None:
    never = {"finder": "never"}
    both = with_policies(table(), north=never, south=never, west=never)
    entry = Bank.open(finished_run(both) / "bank")["histology"]
    assert not finds(entry.layer)
    assert any(np.any(value) for value in without_finder(entry.layer).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        {"adapter": {"aggregation": "secagg"}, "router": {"aggregation": "secagg"}, "minimum_cohort": 3},
        {
            "adapter": {"noise": "dp"},
            "router": {"noise": "dp"},
            "budget": {"epsilon": 8.0, "delta": 0.01},
        },
    ],
)
def test_a_finder_is_summed_and_gets_noise_as_its_layer_does(
    finished_run: FinishedRun, policy: dict[str, Any]
) -> None:
    holders = [{"name": n, "data": {"histology": phantom("histology")}} for n in ("a", "b", "c")]
    plain = tiny_table(
        stream=["histology"], alignment={"finder": True}, training=EPOCHS, institutions=holders
    )
    changed = plain | {"institutions": [site | {"policy": policy} for site in holders]}
    exact, run = finished_run(plain), finished_run(changed)
    one, other = (Bank.open(folder / "bank")["histology"].layer for folder in (exact, run))
    summed = "secagg" in str(policy)
    for name in (f"{PREFIX}narrow.weight", f"{PREFIX}out.weight", "up_CR"):
        assert np.allclose(one[name], other[name], atol=1e-3) is summed, name
    for site in summary_of(run)["privacy"].values():
        assert (site["epsilon_train"] is None) is summed
        assert summed or 0 < site["epsilon_train"] <= 8
        assert site["anonymity"]["adapter"]["server"] == (3 if summed else 1)


def test_evaluation_without_prompts_counts_what_is_missed_as_zero(finished_run: FinishedRun) -> None:
    summary = summary_of(finished_run(table(evaluation={"max_instances": 4, "prompts": "finder"})))
    # Frozen SAM has no finder, and that of polyp did not learn.
    assert [summary["zero_shot"]["iou"][task] for task in ("polyp", "histology")] == [0, 0]
    assert summary["last_iou"] is not None


def test_an_instance_is_scored_by_the_mask_that_was_found_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario.model_validate(table(evaluation={"prompts": "finder", "max_instances": 99}))
    sites = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(tmp_path)})
    south = Institution(next(s for s in sites if s.institution == "south"), scenario, tiny_backbone())
    data, samples = south.encoded("histology", "test")
    loaded = data.load(samples[0])
    numbers = np.unique(loaded.labels_HW[loaded.labels_HW > 0])
    masks_NHW = np.array([loaded.labels_HW == number for number in numbers[1:]])
    ones = np.ones(len(masks_NHW), np.float32)
    all_but_one = Found(masks_NHW, Prompts(boxes_N4=np.zeros((len(ones), 4), np.float32)), ones, ones)
    monkeypatch.setattr("client.evaluation.evaluator.find", lambda *_: all_but_one)
    seen_CHW = data.seen(samples[0], south.backbone, False)
    scores = south.evaluator().score("histology", samples[0], loaded, seen_CHW, None)
    assert scores.n_instances == len(numbers) > 2
    assert scores.total.iou == len(numbers) - 1


def test_a_finder_that_is_not_learned_is_not_evaluated() -> None:
    with pytest.raises(ScenarioError, match=r"expected alignment\.finder = true"):
        Scenario.from_dict(tiny_table(evaluation={"prompts": "finder"}))


def painted(task: str) -> np.ndarray:
    image_HW3: np.ndarray = PHANTOMS[task](np.random.default_rng(7), 64).image_HW3
    return image_HW3


def test_predict_without_a_prompt(run: Path) -> None:
    segmenter = Segmenter(tiny_backbone(), load_bank(run / "bank"))
    prediction = segmenter.predict(painted("histology"), task="histology")
    assert prediction.scores_N is not None
    assert len(prediction.masks_NHW) == len(prediction.iou_N) == len(prediction.scores_N)
    assert len(segmenter.predict(painted("histology"), task="identity").masks_NHW) == 0
    with pytest.raises(PromptError, match="entry of task 'polyp' has no finder"):
        segmenter.predict(painted("polyp"), task="polyp")


def test_of_two_found_masks_the_smaller_is_on_top(run: Path) -> None:
    segmenter = Segmenter(tiny_backbone(), load_bank(run / "bank"))
    prediction = segmenter.predict(painted("histology"), [(0, 0, 63, 63)], task="histology")
    two = replace(prediction, masks_NHW=np.ones((2, 4, 4), bool))
    assert two.labels.max() == two.labels.min() == 2
    two.masks_NHW[0, 0] = False  # the first is smaller
    assert np.unique(replace(two, scores_N=np.array([0.5, 0.4], np.float32)).labels[1:]).tolist() == [1]


def test_the_command_says_that_an_unknown_image_has_no_finder(
    run: Path, tmp_path: Path, casam: Casam
) -> None:
    Image.fromarray(painted("histology")).save(tmp_path / "image.png")
    arguments = ("--bank", str(run / "bank"), "--task", "identity", "--backbone", "tiny")
    result = casam("predict", "image.png", *arguments, "--out", "mask.png")
    assert result.status == 0, result.err
    assert "found      nothing: frozen SAM has no finder" in result.out
    assert np.asarray(Image.open(tmp_path / "mask.png")).max() == 0


def test_the_initial_finder_is_that_of_every_holder() -> None:
    one, other = (weights_of(build_layer(LowRankSpec(finder=True), 32, 4)) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
