"""Where a machine keeps what outlives a run. The standard library alone."""

from __future__ import annotations

import os
from pathlib import Path


def casam_home() -> Path:
    """$CASAM_HOME, by default ~/.cache/casam."""
    return Path(os.environ.get("CASAM_HOME", "~/.cache/casam")).expanduser()
