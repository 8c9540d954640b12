"""What Flower loads: the ClientApp, from the bundle and nowhere else."""

import os
from pathlib import Path

from flwr.clientapp import ClientApp

ROOT = Path(__file__).resolve().parents[2]

# In a simulation, Ray's workers import the client from the directory the SuperLink was started in,
# which may hold another checkout. This module is imported first in Ray's driver, whose working
# directory the workers inherit.
os.chdir(ROOT)

# Ray would otherwise join the last cluster that `ray start` left a note of, whether or not it lives, and
# wait for it. Who wants a cluster names it in RAY_ADDRESS ("auto" is the last one).
os.environ.setdefault("RAY_ADDRESS", "local")

app: ClientApp
try:
    from client.client_app import app
except Exception as error:
    from client.node.broken import broken_app

    app = broken_app(error)

__all__ = ["app"]
