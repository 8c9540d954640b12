"""Packages that only some readers need."""

from __future__ import annotations

from typing import Any

from casam_core.errors import DataError
from casam_core.optional import optional_module


def medical_package(name: str, *, reader: str) -> Any:
    """The package `name` of the extra `medical`; DataError with the command that installs it."""
    return optional_module(name, wanted=f"reader {reader!r}", extra="medical", error=DataError)
