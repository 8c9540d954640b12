"""The engines of `casam run`."""

from __future__ import annotations

from enum import StrEnum


class Engine(StrEnum):
    """What runs the institutions: Flower's simulation (a real `flwr run`), or this process."""

    simulation = "simulation"
    inprocess = "inprocess"
