"""The command line, for tests of the room."""

from tests.casam_command import casam

__all__ = ["casam"]
