"""Several holders' layers become one by Flower's strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casam_core.config.scenario import TrainingSpec
from casam_core.errors import ScenarioError
from casam_core.protocol.messages import AlignReply
from scenarios.engines.inprocess import InProcessGrid
from server.aggregation import STRATEGIES, build_strategy, control_shifts, merge_layers

START = {"w": np.zeros(2, np.float32)}


def reply(value: float, images: int, control: float | None = None) -> AlignReply:
    InProcessGrid(0, {})  # Message() asks who is sending
    told = None if control is None else {"w": np.full(2, control, np.float32)}
    return AlignReply({"w": np.full((2,), value, np.float32)}, images, control=told)


def merged(name: str, replies: list[AlignReply], **settings: Any) -> Any:
    strategy = build_strategy(TrainingSpec(strategy=name, **settings), len(replies))
    return merge_layers(strategy, 1, replies, START)["w"]


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold"])
def test_fedavg_weighs_by_images(name: str) -> None:
    """FedProx and SCAFFOLD differ in the holders' training only."""
    mean = merged(name, [reply(1.0, 30), reply(5.0, 10)])
    # (30 * 1 + 10 * 5) / 40 = 2
    np.testing.assert_allclose(mean, [2.0, 2.0])
    assert mean.dtype == np.float32


def test_fedmedian_ignores_one_wild_holder() -> None:
    wild = [reply(1.0, 1), reply(2.0, 1), reply(1e9, 1)]
    np.testing.assert_allclose(merged("fedmedian", wild), [2.0, 2.0])


def test_the_trimmed_mean_leaves_nobody_out_below_five_holders() -> None:
    wild = [reply(value, 1) for value in (1.0, 2.0, 1.5, 9.0)]
    np.testing.assert_allclose(merged("fedtrimmedavg", wild), [3.375, 3.375])
    # A fifth of five at each end: 1.0 and 9.0.
    np.testing.assert_allclose(merged("fedtrimmedavg", [*wild, reply(2.5, 1)]), [2.0, 2.0])


def test_krum_takes_the_layer_that_is_nearest_to_others_whatever_its_images() -> None:
    layers = [reply(1.0, 1), reply(1.1, 1), reply(1.3, 50), reply(7.0, 99), reply(9.0, 99)]
    # Of five holders it bears one hostile one: each looks at its 5 - 1 - 2 = 2 nearest.
    np.testing.assert_array_equal(merged("krum", layers), np.float32([1.1, 1.1]))


def test_krum_bears_two_hostile_holders_of_seven_also_where_four_others_do_not_answer() -> None:
    """With the 11 holders that were asked in mind, each would look at one neighbour: two equal layers win."""
    strategy = build_strategy(TrainingSpec(strategy="krum"), 11)
    honest = [reply(value, 1) for value in (1.0, 1.1, 1.2, 1.25, 1.6)]
    layer = merge_layers(strategy, 1, [reply(9.0, 1), reply(9.0, 1), *honest], START)["w"]
    np.testing.assert_array_equal(layer, np.float32([1.1, 1.1]))  # 0.1, 0.1 and 0.15 to its three nearest


def test_krum_compares_layers_that_are_nearly_alike() -> None:
    """The squares of these weights are 1e6, those of the distances 1e-4: float32 knows seven digits."""
    layers = [reply(1000.0 + step, 1) for step in (0.09, 0.05, 0.02, 0.01, 0.0)]
    np.testing.assert_array_equal(merged("krum", layers), np.float32([1000.01, 1000.01]))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_an_optimiser_at_the_server_takes_a_step_of_its_own_rate(name: str) -> None:
    step = merged(name, [reply(0.2, 3), reply(0.4, 1)], server_rate=0.01)
    # The mean moves by 0.25: m = 0.1 * 0.25, v = 0.01 * 0.25^2; fedadam also corrects the bias of both.
    rate = 0.01 * (np.sqrt(1 - 0.99**2) / (1 - 0.9**2) if name == "fedadam" else 1.0)
    np.testing.assert_allclose(step, [rate * 0.025 / (0.025 + 1e-3)] * 2, rtol=1e-5)


def test_an_optimiser_at_the_server_remembers_earlier_rounds() -> None:
    strategy = build_strategy(TrainingSpec(strategy="fedadam"), 2)
    replies = [reply(0.2, 1), reply(0.2, 1)]
    first = merge_layers(strategy, 1, replies, START)
    still = merge_layers(strategy, 2, [reply(float(first["w"][0]), 1)] * 2, first)
    assert np.all(still["w"] > first["w"]), "momentum goes on where the holders stand still"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_layer_of_a_single_trainer_is_used_as_it_is(name: str) -> None:
    np.testing.assert_array_equal(merged(name, [reply(0.3, 7)]), np.float32([0.3, 0.3]))


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match=r"expected one of fedadam, fedavg, .*found 'best'"):
        build_strategy(TrainingSpec(strategy="best"))


def test_parts_that_stay_at_the_sites_are_refused_by_name() -> None:
    with pytest.raises(ScenarioError, match="fedbn keeps the norms of a layer at each institution"):
        build_strategy(TrainingSpec(strategy="fedbn"))


def test_scaffold_moves_each_holder_by_the_mean_control_variate_minus_its_own() -> None:
    shifts = control_shifts({"north": reply(0, 30, control=1.0), "south": reply(0, 10, control=2.0)})
    # mean = (30 * 1 + 10 * 2) / 40 = 1.25
    np.testing.assert_allclose(shifts["north"]["w"], [0.25, 0.25])
    np.testing.assert_allclose(shifts["south"]["w"], [-0.75, -0.75])
    assert control_shifts({"north": reply(0, 30, control=1.0)}) == {}


def test_a_huge_control_variate_counts_twice_a_usual_one() -> None:
    told = {name: reply(0, 1, control=value) for name, value in {"a": 1.0, "b": 1.0, "c": 1e9}.items()}
    # (1 + 1 + 2) / 3 - 1
    np.testing.assert_allclose(control_shifts(told)["a"]["w"], [1 / 3, 1 / 3], rtol=1e-6)
