"""Ours: one Alignment Layer per task, chosen by a router (CA-SAM)."""

from casam_core.methods.base import Method

METHOD = Method("One Alignment Layer per task, chosen by the router; unknown images go to frozen SAM.")
