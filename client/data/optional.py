"""Packages that only some readers need."""

from __future__ import annotations

import importlib
from typing import Any

from casam_core.errors import DataError


def medical_package(name: str, *, reader: str) -> Any:
    """The package `name` of the extra `medical`; DataError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise DataError(
            f"reader {reader!r}: expected the package {name.partition('.')[0]}, found none that can be "
            f"imported; run: pip install 'casam[medical]'"
        ) from fault
