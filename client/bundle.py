"""What Flower loads: the ClientApp, from the bundle and nowhere else."""

import os

from casam_core.fingerprint import ROOT

# In a simulation, Ray's workers import the client from the directory the SuperLink was started in,
# which may hold another checkout. This module is imported first in Ray's driver, whose working
# directory the workers inherit.
os.chdir(ROOT)

from client.app import app  # noqa: E402

__all__ = ["app"]
