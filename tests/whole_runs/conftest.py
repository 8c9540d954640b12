"""The `casam` command for tests of the tooling."""

from tests.casam_command import casam

__all__ = ["casam"]
