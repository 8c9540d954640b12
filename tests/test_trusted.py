"""A site trusts what its node runs, and nothing else is in the bundle: every module of the trusted rooms is
imported, somewhere, from where Flower or the launcher begin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


FILES = "casam_core/files.py"

OTHERWISE = {
    "casam_core/model/embeddings.py": "the lock and the mode of the cache's folder; all can be made again",
    "client/data/splits.py": "a second name of a file that files.py wrote; its `remove` syncs the folder",
    "client/data/preview.py": "pictures for the institution's own people",
    "client/evaluation/overlays.py": "pictures for the institution's own people",
    "client/evaluation/results.py": "scores that can be computed again; the file stays open for speed",
    "client/node/incidents.py": "the log of failures: it must work when nothing else does",
    "client/node/launcher.py": "the folder of Flower's own files, before the node starts",
    "client/node/node_file.py": "makes the home before the node starts",
    "client/simulation/faults.py": "simulations only",
}
"""Modules that change files themselves, and why a crash in the middle does no harm there."""

CHANGES = {
    "write_text", "write_bytes", "mkdir", "unlink", "rename", "rmdir", "touch", "chmod", "symlink_to",
    "hardlink_to", "makedirs", "remove", "removedirs", "link", "symlink", "truncate", "ftruncate", "rmtree",
    "move", "copy", "copy2", "copyfile", "copytree", "mkdtemp", "mkstemp", "savefig", "tofile",
}  # fmt: skip
"""Methods and functions that change files. `replace` counts for `os` only: texts have it, too."""


def changes_files(call: ast.Call) -> bool:
    """Whether a call changes a file or a folder, as far as its name and its mode say."""
    given = (*call.args, *(keyword.value for keyword in call.keywords))
    words = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    *owners, name = ast.unparse(call.func).split(".")
    owner = owners[-1] if owners else ""
    if owner == "os" and name in {"open", "replace", "write"}:
        return True
    if name in {"open", "fdopen"}:
        return any(set(text) & set("wax+") and len(text) <= 3 for text in words)
    if name in {"write_text", "write_bytes"} and len(call.args) > 1:
        return False  # RunFolder's, which take a name and use write_atomic
    if name in {"copy", "move", "remove", "link", "truncate"} and owner not in {"os", "shutil"}:
        return False
    return name in CHANGES


def test_trusted_code_changes_files_in_one_module() -> None:
    """There a crash leaves a file whole or absent, and tests/disasters puts a simulated disk in its place."""
    found = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and changes_files(node)
    }
    assert sorted(found - {FILES} - OTHERWISE.keys()) == [], f"use {FILES}, or say here why not"
    assert sorted(OTHERWISE.keys() - found) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')", "path.open('ab')", "os.replace(a, b)", "path.unlink()", "path.write_text(x)",
        "os.open(path, flags)", "shutil.rmtree(x)", "open(path, mode='r+b')",
    ],
)  # fmt: skip
def test_a_call_that_changes_files_is_known(line: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert changes_files(call)


@pytest.mark.parametrize("line", ["path.open('rb')", "open(path)", "text.replace('a', 'b')", "table.copy()"])
def test_a_call_that_reads_is_no_change(line: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert not changes_files(call)
