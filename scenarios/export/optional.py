"""Packages that only one sink needs."""

from __future__ import annotations

import importlib
from typing import Any

from casam_core.errors import ExportError


def export_package(module: str, *, extra: str) -> Any:
    """The module, or ExportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise ExportError(
            f"--to {extra}: expected the packages of the extra {extra!r}, found none that can be imported; "
            f"run: pip install 'casam[{extra}]'"
        ) from fault
