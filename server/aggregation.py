"""Merging the layers of several holders of one task, with Flower's own strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Strategy
from numpy.typing import NDArray

from casam_core.errors import RunError, ScenarioError
from casam_core.protocol.messages import AlignReply
from casam_core.protocol.wire import to_records

# The stage loop chooses the trainers: a strategy must not wait for more nodes than there are holders.
ANY_NUMBER = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**ANY_NUMBER),  # type: ignore[arg-type]
    "fedmedian": lambda: FedMedian(**ANY_NUMBER),  # type: ignore[arg-type]
    "fedtrimmedavg": lambda: FedTrimmedAvg(**ANY_NUMBER),  # type: ignore[arg-type]
}


def build_strategy(name: str) -> Strategy:
    """The strategy with this name in a scenario. Raises ScenarioError, which lists the known names."""
    if name not in STRATEGIES:
        raise ScenarioError(
            f"training.strategy: expected one of {', '.join(sorted(STRATEGIES))}, found {name!r}"
        )
    return STRATEGIES[name]()


def merge_layers(
    strategy: Strategy, server_round: int, replies: Sequence[AlignReply]
) -> dict[str, NDArray[np.float32]]:
    """Merge the holders' layers, weighted by their image counts if the strategy uses weights.

    replies: in a fixed order. Raises RunError if the strategy returns nothing.
    """
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
