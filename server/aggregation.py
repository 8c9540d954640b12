"""Merging layers where several institutions hold one task, by Flower's own strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Strategy
from numpy.typing import NDArray

from casam_core.errors import RunError, ScenarioError

# Our own loop chooses who trains: no strategy may wait for more nodes than there are holders.
ANY_NUMBER = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**ANY_NUMBER),  # type: ignore[arg-type]
    "fedmedian": lambda: FedMedian(**ANY_NUMBER),  # type: ignore[arg-type]
    "fedtrimmedavg": lambda: FedTrimmedAvg(**ANY_NUMBER),  # type: ignore[arg-type]
}


def build_strategy(name: str) -> Strategy:
    """The strategy a scenario names. Raises ScenarioError listing the known ones."""
    if name not in STRATEGIES:
        raise ScenarioError(
            f"training.strategy: expected one of {', '.join(sorted(STRATEGIES))}, found {name!r}"
        )
    return STRATEGIES[name]()


def merge_layers(
    strategy: Strategy, server_round: int, replies: Sequence[Message]
) -> dict[str, NDArray[np.float32]]:
    """The holders' layers as one, weighted by their image counts where the strategy weighs.

    replies: align replies in a fixed order. Raises RunError when the strategy returns nothing.
    """
    plain = [layer_only(message) for message in replies]
    merged, _ = strategy.aggregate_train(server_round, plain)
    if merged is None:
        raise RunError(
            f"{type(strategy).__name__} could not merge {len(replies)} layers of round {server_round}"
        )
    return {name: np.asarray(value.numpy(), np.float32) for name, value in merged.items()}


def layer_only(message: Message) -> Message:
    """The reply with the two records that Flower's strategies expect, and nothing else."""
    content = message.content
    layer: ArrayRecord = content.array_records["layer"]
    records = RecordDict({"layer": layer, "align": content.metric_records["align"]})
    copy = Message(records, dst_node_id=message.metadata.src_node_id, message_type="train")
    return copy
