"""Merging the layers of several holders of one task, with Flower's own strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray

from casam_core.config.scenario import TrainingSpec
from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.messages import AlignReply, Layer
from casam_core.protocol.wire import to_records

# The stage loop chooses the trainers: a strategy must not wait for more nodes than there are holders.
ANY_NUMBER = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


@dataclass(frozen=True)
class Merging:
    """A way of merging. means: it needs only the mean of the layers, so it works with secure sums."""

    build: Callable[[TrainingSpec], Strategy]
    means: bool = False


def mean(spec: TrainingSpec) -> Strategy:
    """The mean, weighted by images."""
    return FedAvg(**ANY_NUMBER)  # type: ignore[arg-type]


# FedProx and SCAFFOLD change how the holders train (client/drift.py); their layers are averaged.
STRATEGIES: dict[str, Merging] = {
    "fedavg": Merging(mean, means=True),
    "fedprox": Merging(mean, means=True),
    "scaffold": Merging(mean),
    "fedadam": Merging(lambda spec: FedAdam(eta=spec.server_rate, **ANY_NUMBER), means=True),  # type: ignore[arg-type]
    "fedyogi": Merging(lambda spec: FedYogi(eta=spec.server_rate, **ANY_NUMBER), means=True),  # type: ignore[arg-type]
    "fedmedian": Merging(lambda spec: FedMedian(**ANY_NUMBER)),  # type: ignore[arg-type]
    "fedtrimmedavg": Merging(lambda spec: FedTrimmedAvg(**ANY_NUMBER)),  # type: ignore[arg-type]
    "krum": Merging(lambda spec: Krum(**ANY_NUMBER)),  # type: ignore[arg-type]
}


def build_strategy(spec: TrainingSpec, trainers: int = 1) -> Strategy:
    """The scenario's strategy for a task with this many trainers.

    A single trainer's layer is used as it is. Raises ScenarioError for an unknown name.
    """
    name = spec.strategy
    if name == "fedbn":
        raise ScenarioError(
            "training.strategy: fedbn keeps the norms of a layer at each institution, but an entry of the "
            "bank is one layer for all; use another strategy"
        )
    if name not in STRATEGIES:
        raise ScenarioError(
            f"training.strategy: expected one of {', '.join(sorted(STRATEGIES))}, found {name!r}"
        )
    return STRATEGIES[name if trainers > 1 else "fedavg"].build(spec)


def merge_layers(
    strategy: Strategy,
    server_round: int,
    replies: Sequence[AlignReply],
    start: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Merge the holders' layers, weighted by their image counts if the strategy uses weights.

    replies: in a fixed order. start: the weights before the round, which strategies with an optimiser at the
    server need. Raises RunError if the strategy returns nothing.
    """
    if len(replies) == 1 and not isinstance(strategy, FedOpt):
        return dict(replies[0].layer)  # a mean of one would only round it
    if isinstance(strategy, FedOpt):
        # Flower sets it when the strategy sends the weights itself; here the stage loop sends them.
        strategy.current_arrays = {name: np.array(value) for name, value in (start or {}).items()}
    if isinstance(strategy, Krum):
        # As many hostile holders as it can bear among these. Its distances cancel out in float32.
        strategy.num_malicious_nodes = max((len(replies) - 3) // 2, 0)
        layers: list[Any] = [{key: x.astype(np.float64) for key, x in one.layer.items()} for one in replies]
        replies = [replace(one, layer=layer) for one, layer in zip(replies, layers, strict=True)]
    merged, _ = strategy.aggregate_train(server_round, [as_flower_expects(reply) for reply in replies])
    if merged is None:
        raise RunError(
            f"{type(strategy).__name__} could not merge {len(replies)} layers of round {server_round}"
        )
    return {name: np.asarray(value.numpy(), np.float32) for name, value in merged.items()}


def as_flower_expects(reply: AlignReply) -> Message:
    """A message with only the layer and its image count, the two records that Flower's strategies read."""
    payload = AlignReply(reply.layer, reply.images).to_payload()
    return Message(to_records(payload), dst_node_id=0, message_type="train")


CONTROL_FACTOR = 2.0
"""A control variate counts with at most this many times the norm of a usual one."""


def control_shifts(told: Mapping[str, AlignReply]) -> dict[str, Layer]:
    """SCAFFOLD: by institution, the mean control variate minus its own; none for fewer than two.

    told: by institution, its last reply with a control variate. The mean is weighted by images. A hostile
    institution could steer the others with a huge one, so each is shortened to CONTROL_FACTOR times the lower
    median of the norms.
    """
    if len(told) < 2:
        return {}
    norms = {name: norm_of(reply.control or {}) for name, reply in told.items()}
    most = CONTROL_FACTOR * sorted(norms.values())[(len(norms) - 1) // 2]
    own = {
        name: {
            key: value * min(1.0, most / (norms[name] or 1.0)) for key, value in (reply.control or {}).items()
        }
        for name, reply in told.items()
    }
    images = [reply.images for reply in told.values()]
    keys = next(iter(own.values()))
    mean = {key: np.average([one[key] for one in own.values()], axis=0, weights=images) for key in keys}
    return {
        name: {key: np.asarray(mean[key] - value, np.float32) for key, value in one.items()}
        for name, one in own.items()
    }


def norm_of(layer: Layer) -> float:
    """Euclidean norm over all arrays together."""
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in layer.values())))
