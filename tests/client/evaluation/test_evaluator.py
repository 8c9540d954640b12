"""What an instance is prompted with when its institution is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from casam_core.bank.clicking import masks_by_clicks
from casam_core.config.scenario import EvaluationSpec, Scenario
from casam_core.metrics.segmentation import iou
from client.institution import Institution
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import tiny_table


@pytest.mark.parametrize(("prompts", "box"), [("clicks", False), ("box_clicks", True)])
def test_an_instance_is_scored_after_its_last_click(tmp_path: Path, prompts: str, box: bool) -> None:
    table = tiny_table(evaluation={"prompts": prompts, "clicks": 2, "max_instances": 99})
    scenario = Scenario.model_validate(table)
    sites = hosted_sites(scenario, "run", {"partition-id": 0, "num-partitions": 1}, {"out": str(tmp_path)})
    south = Institution(next(s for s in sites if s.institution == "south"), scenario, tiny_backbone())
    data, (sample, *_) = south.encoded("histology", "test")
    loaded, seen_CHW = data.load(sample), data.seen(sample, south.backbone, False)
    scores = south.evaluator().score("histology", sample, loaded, seen_CHW, None)
    by_hand = []
    for number in np.unique(loaded.labels_HW[loaded.labels_HW > 0]):
        true_HW = loaded.labels_HW == number
        masks = list(masks_by_clicks(south.backbone, seen_CHW, None, true_HW, 2, box=box))
        assert len(masks) == 3
        assert masks[0].any() == box
        by_hand.append(iou(masks[-1], true_HW))
    assert scores.n_instances == len(by_hand) > 2
    assert scores.total.iou == pytest.approx(sum(by_hand))


def test_the_clicks_of_earlier_scenarios_keep_their_digest() -> None:
    assert "clicks" not in EvaluationSpec().model_dump()
    assert EvaluationSpec(clicks=5).model_dump()["clicks"] == 5
    with pytest.raises(ValidationError):
        EvaluationSpec(clicks=0)
