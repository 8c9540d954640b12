"""Packages that only an extra brings."""

from __future__ import annotations

import importlib
from typing import Any

from casam_core.errors import CasamError


def optional_module(name: str, *, wanted: str, extra: str, error: type[CasamError]) -> Any:
    """The module; `error` with the command that installs it. wanted: what asks for it, as the error says."""
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise error(
            f"{wanted}: expected the packages of the extra {extra!r}, found that {name} cannot be imported; "
            f"run: pip install 'casam[{extra}]'"
        ) from fault
