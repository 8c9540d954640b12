"""The documentation: links lead somewhere, commands exist, marked blocks run (tests/pages.py says how)."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from casam_bench import BENCHMARKS
from tests.commands import casam_commands, fault_of
from tests.pages import Page, broken_links, reachable, read_page

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "docker", ROOT / "client" / "release")
PAGES: dict[Path, Page] = {
    path: read_page(path) for folder in FOLDERS for path in sorted(folder.glob("*.md"))
}
BLOCKS = [(path, block) for path, page in PAGES.items() for block in page.blocks]


def where(path: Path, line: int) -> str:
    """`docs/data.md:12`"""
    return f"{path.relative_to(ROOT)}:{line}"


def named(path: Path) -> str:
    """What pytest calls a page."""
    return str(path.relative_to(ROOT))


def marked(run: str) -> list[Path]:
    """Pages with blocks of this mark."""
    return [path for path, page in PAGES.items() if any(block.run == run for block in page.blocks)]


def test_every_link_and_anchor_leads_somewhere() -> None:
    assert broken_links(PAGES, ROOT) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    assert set(PAGES) - reachable(ROOT / "README.md") == set()


def test_every_command_in_a_block_is_one_that_casam_knows() -> None:
    faults = [
        f"{where(path, block.line)}: casam {' '.join(arguments)}: {fault}"
        for path, block in BLOCKS
        for arguments in casam_commands(block.text)
        if (fault := fault_of(arguments))
    ]
    assert faults == []


def test_every_command_in_a_sentence_is_one_that_casam_knows() -> None:
    faults = [
        f"{where(path, line)}: `{code}`: {fault}"
        for path, page in PAGES.items()
        for code, line in page.codes
        if code.startswith("casam ")
        for arguments in casam_commands(code)
        if (fault := fault_of(arguments, whole=False))
    ]
    assert faults == []


def test_every_benchmark_that_a_page_names_exists() -> None:
    """In every page, the log and CHANGELOG too: one that is gone is named without the command."""
    texts = [(path, code, line) for path, page in PAGES.items() for code, line in page.codes]
    texts += [(path, block.text, block.line) for path, block in BLOCKS]
    asked = {
        (where(path, line), word)
        for path, text, line in texts
        for options in re.findall(r"\bcasam bench((?: [a-z][a-z-]*)*)", text)
        for word in options.split()
    }
    assert asked
    assert sorted(item for item in asked if item[1] not in BENCHMARKS) == []


def test_every_make_target_in_a_block_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {
        (where(path, block.line), target)
        for path, block in BLOCKS
        for target in re.findall(r"^make ([a-z-]+)", block.text, flags=re.MULTILINE)
    }
    assert asked
    assert [item for item in asked if item[1] not in targets] == []


Shell = Callable[[str], None]


@pytest.fixture
def shell(tmp_path: Path, own_home: Path) -> Shell:
    """Run commands as a reader would, in a folder of their own; the first that fails fails the test."""
    environment = os.environ | {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CASAM_HOME": str(own_home),
    }

    def run(text: str) -> None:
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"

    return run


@pytest.mark.parametrize("page", marked("fast"), ids=named)
def test_quick_blocks_run(page: Path, shell: Shell) -> None:
    for block in PAGES[page].blocks:
        if block.run == "fast":
            shell(block.text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", marked("slow"), ids=named)
def test_all_marked_blocks_run(page: Path, shell: Shell) -> None:
    for block in PAGES[page].blocks:
        if block.run:
            shell(block.text)


def test_a_command_that_fails_fails_its_block(shell: Shell) -> None:
    shell("true")
    with pytest.raises(AssertionError, match="what went wrong"):
        shell("echo 'what went wrong' >&2; false; true")
