"""What documents, docstrings and comments name is there: files, modules, tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("casam", "casam_core", "client", "server", "scenarios", "casam_bench", "casam_use")
ROOMS = (*PACKAGES, "tests", "docs", "docker")
FILE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(ROOMS)})/[\w/.-]+\.(?:py|md|toml|json|yml))\b")
MODULE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?![\w/(])")
SUFFIXES = (".fab", ".plugins", ".crt", ".key", ".pem")
TEST = re.compile(r"`(test_\w+)`")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """The syntax tree of a file, node by node."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(where, text) of every page, docstring and comment of the product, and of the tests' docstrings."""
    return tuple(found_texts())


def found_texts() -> Iterator[tuple[str, str]]:
    """See `texts`."""
    for folder in (".", "docs", "docker", "client/release"):
        for page in sorted((ROOT / folder).glob("*.md")):
            # The change log tells of what once was.
            if page.name not in ("CHANGELOG.md",):
                yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    for room in (*PACKAGES, "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            said = [node.value for node in nodes_of(path) if is_text(node)]
            comments = re.findall(r"#.*", source) if room != "tests" else []
            yield path.relative_to(ROOT).as_posix(), "\n".join([*said, *comments])


def is_text(node: ast.AST) -> bool:
    """A docstring, or a string that stands alone."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 40


@cache
def module_names() -> frozenset[str]:
    """Dotted names of modules and of what they define."""
    found = set()
    for room in PACKAGES:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.add(name)
            for node in nodes_of(path):
                for defined in names_in(node):
                    found.add(f"{name}.{defined}")
    return frozenset(found)


def names_in(node: ast.AST) -> Iterator[str]:
    """What one statement gives a name to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for inner in node.body for name in names_in(inner))
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)


def test_files_that_are_named_exist() -> None:
    missing = {
        (where, name) for where, text in texts() for name in FILE.findall(text) if not (ROOT / name).exists()
    }
    assert sorted(missing) == []


def test_modules_that_are_named_exist() -> None:
    packages = {name.split(".")[0] for name in module_names()} | {"casam"}
    unknown = {
        (where, name)
        for where, text in texts()
        for name in MODULE.findall(text)
        if not name.endswith(SUFFIXES)
        and name not in module_names()
        and name not in packages
        and not (ROOT / name.replace(".", "/")).is_dir()
    }
    assert sorted(unknown) == []


def test_tests_that_pages_name_exist() -> None:
    known = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef)
    } | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    unknown = {
        (where, name)
        for where, text in texts()
        if where.endswith(".md")
        for name in TEST.findall(text)
        if name not in known
    }
    assert sorted(unknown) == []
