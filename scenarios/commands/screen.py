"""Where commands print."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """Output; bound to the real stdout, so that nothing that is printed while it draws returns to it.

    In a file or a pipe there is no window to fit a table into.
    """
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
