"""Cells on the nodes of an existing Ray cluster (`casam study --ray ADDRESS`).

Every node needs this version of casam, and the study's folder and the data under the same paths. Ray chooses
the node; the cell runs there in the same way as on this machine.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray

from casam_core.errors import RunError
from scenarios.study.cell import CellEnd, CellOrder, LocalCells


def run_here(order: CellOrder) -> CellEnd:
    """Run a cell on a node of the cluster."""
    return LocalCells().run(order)


def knock(address: str) -> None:
    """Raise RunError if nothing listens at HOST:PORT. Ray itself would try for minutes, then exit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # for example `auto`: Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise RunError(f"--ray {address}: no Ray cluster answers there: {error}") from error


class RayCells:
    """Runs each cell as a task of the cluster. threads: CPUs of one cell."""

    def __init__(self, address: str, threads: int) -> None:
        """Connect. Raises RunError if no cluster answers, or if it has too few CPUs."""
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
        # No retries: a failed cell would most likely fail again and cost as much.
        self._remote: Any = ray.remote(num_cpus=threads, max_retries=0)(run_here)

    def run(self, order: CellOrder) -> CellEnd:
        """Run a cell; a node that dies fails only its cell."""
        try:
            end: CellEnd = ray.get(self._remote.remote(order))
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            return CellEnd(order.name, f"Ray: {said[-1]}", 0.0)
        return end

    def stop(self) -> None:
        """Leave the cluster; tasks of this process end with it."""
        ray.shutdown()
