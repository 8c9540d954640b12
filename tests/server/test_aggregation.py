"""Several holders' layers become one by Flower's strategies."""

from __future__ import annotations

import numpy as np
import pytest

from casam_core.errors import ScenarioError
from casam_core.protocol.messages import AlignReply
from scenarios.engines.inprocess import InProcessGrid
from server.aggregation import build_strategy, merge_layers


def reply(value: float, images: int) -> AlignReply:
    InProcessGrid(0, {})  # Message() asks who is sending
    return AlignReply({"w": np.full((2,), value, np.float32)}, images)


def test_fedavg_weighs_by_images() -> None:
    merged = merge_layers(build_strategy("fedavg"), 1, [reply(1.0, 30), reply(5.0, 10)])
    # (30 * 1 + 10 * 5) / 40 = 2
    np.testing.assert_allclose(merged["w"], [2.0, 2.0])
    assert merged["w"].dtype == np.float32


def test_fedmedian_ignores_one_wild_holder() -> None:
    merged = merge_layers(build_strategy("fedmedian"), 1, [reply(1.0, 1), reply(2.0, 1), reply(1e9, 1)])
    np.testing.assert_allclose(merged["w"], [2.0, 2.0])


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"expected one of fedavg, .*found 'best'"):
        build_strategy("best")
