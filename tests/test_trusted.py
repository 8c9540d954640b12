"""A site trusts what its node runs, and nothing else is in the bundle: every module of the trusted rooms is
imported, somewhere, from where Flower or the launcher begin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("casam_core", "client", "server")
BEGINNINGS = ("client.node.flower_entry", "client.node.launcher", "server.server_app")


def modules() -> dict[str, Path]:
    """Every module of the trusted rooms that says anything, by its dotted name."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in named.items() if path.stat().st_size}


def imported_by(path: Path) -> Iterator[str]:
    """Names that may be modules: also of imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_bundle_holds_nothing_that_no_node_runs() -> None:
    known = modules()
    reached: set[str] = set()
    ahead = list(BEGINNINGS)
    while ahead:
        name = ahead.pop()
        if name in reached or name not in known:
            continue
        reached.add(name)
        ahead += imported_by(known[name])
        ahead.append(name.rpartition(".")[0])
    assert sorted(known.keys() - reached) == []
