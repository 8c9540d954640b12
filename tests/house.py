"""The size and the order of the house, as a table: `python -m tests.house`."""

from __future__ import annotations

import ast
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("casam", "casam_core", "client", "server", "scenarios", "casam_bench", "casam_use")
TRUSTED = ("casam_core", "client", "server")
RELEASE_PATH = "client/release"
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.Assert,
    ast.BoolOp,
)


def sources(*rooms: str) -> list[Path]:
    """Python files below some folders."""
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def lines(paths: list[Path]) -> int:
    """Their lines together."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def message_code() -> list[Path]:
    """What says how messages look, and what the guard lets pass."""
    named = [ROOT / "casam_core/protocol" / name for name in ("messages.py", "schema.py", "limits.py")]
    return [*named, ROOT / "client/release/guard.py"]


def complexities() -> Iterator[tuple[int, str]]:
    """(branches + 1, where) of every function of the product."""
    for path in sources(*ROOMS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                branches = sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))
                yield branches + 1, f"{path.relative_to(ROOT)}:{node.name}"


def entries() -> dict[str, int]:
    """How much a person sees in every folder of the product: sub-folders and files."""
    folders = {path.parent for path in sources(*ROOMS)}
    folders |= {above for folder in folders for above in folder.parents if above.is_relative_to(ROOT)}
    shown = {
        folder.relative_to(ROOT).as_posix(): sum(
            not entry.name.startswith(("_", ".")) and entry.name != "py.typed" for entry in folder.iterdir()
        )
        for folder in folders - {ROOT}
    }
    return shown


def names_of_several_files() -> list[str]:
    """File names that stand for more than one thing."""
    counts = Counter(path.name for path in sources(*ROOMS))
    return sorted(
        name for name, count in counts.items() if count > 1 and name not in ("__init__.py", "base.py")
    )


def definitions(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of a module's classes and types. A class is a text of its own; `T` is no name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, f"class in {path.relative_to(ROOT)}"
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if re.fullmatch("_?[A-Z][A-Za-z]*[a-z][A-Za-z]*", name):
                yield name, ast.unparse(node.value)


def names_of_several_things(*rooms: str) -> dict[str, set[str]]:
    """Names of classes and types that stand for more than one thing; aliases of equal text are one."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sources(*rooms):
        for name, text in definitions(path):
            found[name].add(text)
    return {name: texts for name, texts in found.items() if len(texts) > 1}


def errors_without_a_word() -> list[str]:
    """Documented public functions of trusted code that raise an error themselves, and do not say so."""
    found = []
    for path in sources(*TRUSTED):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for body in [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]:
            for function in body:
                if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                    said = ast.get_docstring(function) or "raises"
                    if own_errors(function) and "aise" not in said and "RefusalError" not in said:
                        found.append(f"{path.relative_to(ROOT)}:{function.name}")
    return found


def own_errors(function: ast.FunctionDef) -> list[ast.Raise]:
    """Where the function itself raises, and not to say that a class below it must do the work."""
    inner = {node for part in function.body if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
    raises = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return [node for node in raises if node not in inner and "NotImplementedError" not in ast.unparse(node)]


def main() -> None:
    print(f"product: {lines(sources(*ROOMS))} lines in {len(sources(*ROOMS))} files")
    print(f"bundle: {lines(sources(*TRUSTED))} lines")
    print(f"release path: {lines(sources(RELEASE_PATH))} lines")
    print(f"message code: {lines(message_code())} lines")
    print(f"tests: {lines(sources('tests'))} lines")
    print(f"functions with complexity over 15: {sum(found > 15 for found, _ in complexities())}")
    print(f"fullest folder: {max((count, folder) for folder, count in entries().items())}")
    print(f"one file name for several things: {names_of_several_files()}")
    for room in ROOMS:
        sizes = [lines([path]) for path in sources(room) if path.stat().st_size]
        print(f"{room}: {len(sizes)} files, median {statistics.median(sizes):.0f} lines")


if __name__ == "__main__":
    main()
