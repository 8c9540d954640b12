"""What an institution does on its own, without server or Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from casam_core.config.scenario import Scenario
from casam_core.protocol.payload import Job
from client.institution import Institution
from client.site import hosted_sites
from tests.banks import tiny_backbone
from tests.conftest import tiny_table


def institution(name: str, folder: Path, **changes: Any) -> Institution:
    scenario = Scenario.model_validate(tiny_table(**changes))
    node = {"partition-id": 0, "num-partitions": 1}
    sites = hosted_sites(scenario, "run", node, {"out": str(folder)})
    return Institution(next(s for s in sites if s.institution == name), scenario, tiny_backbone())


def test_holders_of_a_task_start_their_routers_alike(tmp_path: Path) -> None:
    """Averaged weights of networks that began elsewhere would be the weights of nothing."""
    router = {"kind": "vae", "features": "attention", "epochs": 1, "learning_rate": 1e-12}
    summaries = [
        institution(name, tmp_path, router=router).router_statistics(Job(name, 2, "histology")).router
        for name in ("south", "west")
    ]
    for name in ("enc_fc1.weight", "dec_fc2.weight"):
        np.testing.assert_allclose(summaries[0][name], summaries[1][name], atol=1e-9)


def test_an_embedding_that_is_gone_is_made_again(tmp_path: Path) -> None:
    site = institution("north", tmp_path)
    data, samples = site.encoded("polyp", "train")
    key, before = data.embedding(samples[0], site.backbone)
    (data.store.folder / key[:2] / f"{key}.npy").unlink()
    assert torch.equal(data.embedding(samples[0], site.backbone)[1], before)
