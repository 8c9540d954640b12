"""Routing figures from a small confusion table, worked out by hand."""

from __future__ import annotations

import pytest

from casam_core.metrics.routes import RoutingMetrics, routing_metrics
from casam_core.routing.decision import IDENTITY


def test_by_hand() -> None:
    confusion = {
        "ct": {"ct": 7, "mri": 2, IDENTITY: 1},
        "mri": {"mri": 9, IDENTITY: 1},
        "xray": {"ct": 1, IDENTITY: 3},
    }
    # Seen: 10 + 10 images, 7 + 9 right, 1 + 1 unknown. Unseen: 4 images, 3 unknown.
    assert routing_metrics(confusion, seen=("ct", "mri")) == RoutingMetrics(
        accuracy=16 / 20,
        false_unknown_rate=2 / 20,
        unseen_unknown_rate=3 / 4,
        seen_images=20,
        unseen_images=4,
    )


def test_images_count_not_tasks() -> None:
    # 99 of 100 and 0 of 1: 99 / 101, not the mean of the two shares.
    metrics = routing_metrics({"a": {"a": 99, "b": 1}, "b": {"a": 1}}, seen={"a", "b"})
    assert metrics.accuracy == pytest.approx(99 / 101)


def test_nothing_to_judge_by() -> None:
    assert routing_metrics({}, seen=()) == RoutingMetrics(None, None, None, 0, 0)
    only_seen = routing_metrics({"a": {"a": 2}}, seen=("a", "b"))
    assert only_seen == RoutingMetrics(1.0, 0.0, None, 2, 0)
    # Before the first stage everything is unseen.
    assert routing_metrics({"a": {IDENTITY: 2}}, seen=()) == RoutingMetrics(None, None, 1.0, 0, 2)
    assert routing_metrics({"a": {"a": 0}, "b": {}}, seen=("a",)) == RoutingMetrics(None, None, None, 0, 0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no task can have that name"):
        routing_metrics({IDENTITY: {IDENTITY: 1}}, seen=())
    with pytest.raises(ValueError, match="no task can have that name"):
        routing_metrics({}, seen=(IDENTITY,))
    with pytest.raises(ValueError, match="has no entry"):
        routing_metrics({"a": {"b": 1}}, seen=("a",))
    with pytest.raises(ValueError, match="must count images"):
        routing_metrics({"a": {"a": -1}}, seen=("a",))
