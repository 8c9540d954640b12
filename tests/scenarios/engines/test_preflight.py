"""What a run will cost is said before it starts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casam_core.config.scenario import PrivacySpec, Scenario
from casam_core.errors import DataError, ScenarioError
from casam_core.model.forms import form_spec
from casam_core.model.training import planned_steps
from scenarios.engines.inprocess import InProcessGrid, run_inprocess
from scenarios.engines.preflight import preflight
from tests.conftest import tiny_table


@pytest.mark.parametrize("method", ["casam", "sequential", "fedavg", "joint", "frozen"])
def test_the_cost_that_is_announced_is_the_cost(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and exchanges exactly, since nobody fails here."""
    kinds: list[set[str]] = []
    push = InProcessGrid.push_messages

    def counted(self: InProcessGrid, messages: object) -> object:
        sent = list(messages)  # type: ignore[call-overload]
        kinds.append({message.metadata.message_type for message in sent})
        return push(self, sent)

    monkeypatch.setattr(InProcessGrid, "push_messages", counted)
    training = {"epochs": 1, "batch_images": 4, "rounds": 2}
    table = tiny_table(method=method, training=training, evaluation={"max_instances": 1})
    scenario = Scenario.model_validate(table)
    cost = preflight(scenario, None)
    run_inprocess(scenario, tmp_path / "run", None)
    assert cost.exchanges == sum(bool(kind) for kind in kinds)

    # Training images: north 6, south 6 of histology, west 7.
    trained = {
        "casam": [6, 6, 7],
        "sequential": [6, 6, 7],
        "fedavg": [6, 6, 7, 6, 7],  # all three; then without the one whose task is past
        "joint": [6, 19],
        "frozen": [],
    }[method]
    assert cost.steps == sum(2 * planned_steps(images, scenario.training) for images in trained)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert sum(event.get("images", 0) for event in events) == 2 * sum(trained)


def private_scenario(images: int, unit: str = "image", **privacy: str | float) -> Scenario:
    """One institution with noise and the default backbone, whose public library is shipped."""
    policy = {
        "adapter": {"noise": "dp"},
        "router": {"noise": "dp"},
        "budget": {"epsilon": 8.0, "delta": 1e-3, "unit": unit},
    }
    data = {"polyp": {"reader": "phantom", "phantom": "polyp", "images": images, "size": 64}}
    table = {"name": "few", "stream": ["polyp"], "privacy": privacy}
    return Scenario.model_validate(
        table | {"institutions": [{"name": "clinic", "data": data, "policy": policy}]}
    )


@pytest.mark.parametrize(
    ("images", "unit", "rate", "share"),
    [
        (90, "image", None, 1.0),
        (90, "image", 0.5, 0.5),
        (900, "image", None, None),
        (900, "group", None, 1.0),
    ],
)
def test_private_steps_are_counted_by_the_images_that_take_part(
    images: int, unit: str, rate: float | None, share: float | None
) -> None:
    """200 of many images; of groups, whose number is unknown before the data are read, all are counted."""
    steps, whole = (
        preflight(private_scenario(images, unit, **({"sampling_rate": rate} if rate else {})), None).steps
        for rate in (rate, 1.0)
    )
    assert steps == (math.ceil(share * whole) if share else 200 * PrivacySpec().steps)


def test_a_form_that_is_not_trained_with_noise_is_told_with_those_that_are() -> None:
    scenario = private_scenario(90)
    alignment = form_spec("low_rank_decoder")
    (advice,) = preflight(scenario.model_copy(update={"alignment": alignment}), None).advice
    assert "clinic learns polyp with noise" in advice
    assert "'low_rank_decoder' cannot be, so the layer will be refused: use one of low_rank" in advice


def test_noise_on_few_images_is_told_with_the_method_that_keeps_more() -> None:
    (advice,) = preflight(at_epsilon(3, private_scenario(20)), None).advice
    assert advice.startswith("clinic learns polyp with noise from ")
    assert 'privacy.method = "public_start"' in advice


def at_epsilon(epsilon: float, scenario: Scenario) -> Scenario:
    """The scenario with another budget at its one institution."""
    (site,) = scenario.institutions
    budget = site.policy.budget.model_copy(update={"epsilon": epsilon})
    policy = site.policy.model_copy(update={"budget": budget})
    return scenario.model_copy(update={"institutions": [site.model_copy(update={"policy": policy})]})


def test_a_method_is_not_advised_where_it_is_used_or_images_are_many_or_epsilon_is_another() -> None:
    assert preflight(at_epsilon(3, private_scenario(20, method="public_start")), None).advice == ()
    assert preflight(at_epsilon(3, private_scenario(90)), None).advice == ()
    for epsilon in (1, 8):
        assert preflight(at_epsilon(epsilon, private_scenario(20)), None).advice == ()


def test_a_task_whose_form_the_public_library_is_not_for_is_told_before_the_run() -> None:
    scenario = private_scenario(20, method="public_start")
    (advice,) = preflight(
        scenario.model_copy(update={"alignments": {"polyp": form_spec("scale_shift")}}), None
    ).advice
    assert "is for the form 'low_rank' of `alignment`, so the layer will be refused" in advice


@pytest.mark.parametrize("form", ["decoder", "lora"])
def test_a_finder_with_a_form_that_changes_sam_is_refused_before_the_run(form: str) -> None:
    table = tiny_table(alignments={"polyp": {"form": form, "finder": True}})
    with pytest.raises(ScenarioError, match=f"for task 'polyp', whose form '{form}' changes SAM itself"):
        preflight(Scenario.from_dict(table), None)


def test_masks_of_unclear_meaning_are_refused_until_a_word_says_what_they_hold(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[5:20, 5:20] = mask[40:60, 40:60] = 255
    for number in range(6):
        for part, pixels in (("images", np.full((64, 64, 3), 20 * number, np.uint8)), ("masks", mask)):
            (tmp_path / "nuclei" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "nuclei" / part / f"{number}.png")
    table = tiny_table(stream=["nuclei"])

    def with_data(**words: str) -> Scenario:
        data = {"nuclei": {"path": "nuclei", **words}}
        return Scenario.model_validate(table | {"institutions": [{"name": "clinic", "data": data}]})

    with pytest.raises(DataError, match="'nuclei': labels: expected one value per object, found one"):
        preflight(with_data(), tmp_path)
    preflight(with_data(labels="classes"), tmp_path)


def test_an_object_in_two_parts_is_not_in_doubt_where_the_file_says_that_it_is_one(tmp_path: Path) -> None:
    """COCO has an entry for each object; `labels` is no key of its reader."""
    corners = [[5, 5, 20, 5, 20, 20, 5, 20], [40, 40, 60, 40, 60, 60, 40, 60]]
    images, annotations = [], []
    (tmp_path / "nuclei").mkdir()
    for number in range(6):
        name = f"{number}.png"
        Image.fromarray(np.full((64, 64, 3), 20 * number, np.uint8)).save(tmp_path / "nuclei" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": corners})
    text = json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "n"}]})
    (tmp_path / "nuclei" / "annotations.json").write_text(text)
    data = {"nuclei": {"reader": "coco", "path": "nuclei"}}
    table = tiny_table(stream=["nuclei"]) | {"institutions": [{"name": "clinic", "data": data}]}
    preflight(Scenario.model_validate(table), tmp_path)
