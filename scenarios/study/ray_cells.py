"""Cells on the nodes of an existing Ray cluster (`casam study --ray ADDRESS`).

Every node must have this version of casam, and see the study's folder and the data under the same paths. Ray
comes with Flower's simulation engine; it chooses the node, and the cell runs there as it would here.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray

from casam_core.errors import RunError
from scenarios.study.cell import CellEnd, CellOrder, LocalCells


def run_here(order: CellOrder) -> CellEnd:
    """What a node does."""
    return LocalCells().run(order)


def knock(address: str) -> None:
    """Raise RunError where nothing listens at HOST:PORT: Ray tries for minutes, then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # `auto` and the like; Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise RunError(f"--ray {address}: no Ray cluster answers there: {error}") from error


class RayCells:
    """Each cell a task of the cluster. threads: CPUs that one cell uses."""

    def __init__(self, address: str, threads: int) -> None:
        """Connect. Raises RunError where no cluster answers."""
        knock(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise RunError(f"--ray {address}: no Ray cluster answers there: {said[0]}") from error
        self.cpus = int(ray.cluster_resources().get("CPU", 0))
        if self.cpus < threads:
            ray.shutdown()
            raise RunError(f"--ray {address}: the cluster has {self.cpus} CPUs, a cell needs {threads}")
        # A cell that failed is shown, not tried again: what failed once fails again, and costs as much.
        self._remote: Any = ray.remote(num_cpus=threads, max_retries=0)(run_here)

    def run(self, order: CellOrder) -> CellEnd:
        """A node that dies costs its cell alone."""
        try:
            end: CellEnd = ray.get(self._remote.remote(order))
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            return CellEnd(order.name, f"Ray: {said[-1]}", 0.0)
        return end

    def stop(self) -> None:
        """Leave the cluster; tasks of this process end with it."""
        ray.shutdown()
