"""Plug-ins: the entry points `casam.plugins` of installed packages.

A plug-in is a module that calls `casam.register_router`, `casam.register_form` and so on when it is imported.
It is imported before a process reads its first scenario.

A site installs plug-ins itself; the bundle's hash does not cover them. Their names and versions are part of
the code fingerprint (casam_core.protocol.fingerprint), so the server refuses a node with another version.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "casam.plugins"


def plugins() -> list[EntryPoint]:
    """The installed plug-ins, sorted by name."""
    return sorted(entry_points(group=GROUP), key=lambda plugin: plugin.name)


@cache
def load_plugins() -> None:
    """Import every plug-in, once per process. Raises the errors of these imports."""
    for plugin in plugins():
        plugin.load()


def plugin_versions() -> list[str]:
    """`NAME VALUE DISTRIBUTION VERSION` of every plug-in."""
    return [
        f"{plugin.name} {plugin.value} {plugin.dist.name} {plugin.dist.version}"
        if plugin.dist
        else plugin.name
        for plugin in plugins()
    ]
