"""Disks that are full or read-only: one line, nothing lost, and the run goes on once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from casam_core.bank.bank import Bank
from casam_core.protocol.audit import broken, read_log
from scenarios.inspection.verify import verify
from tests.conftest import tiny_table
from tests.runs import FinishedRun, summary_of

pytestmark = pytest.mark.slow

KIB = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; a counted skip where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def casam(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "casam"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=os.environ.copy()
    )


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failed run."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def pages(folder: Path) -> int:
    """KiB that the files of a folder take on a disk of whole pages."""
    return sum(-(-file.stat().st_size // (4 * KIB)) * 4 for file in folder.rglob("*") if file.is_file())


def test_a_run_on_a_full_disk_stops_in_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path, finished_run: FinishedRun
) -> None:
    """The disk grows a little at every try: wherever it was full, the end is that of an undisturbed run."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    whole = finished_run(tiny_table())
    needed = pages(whole)
    lines = []
    for size in (8, needed * 2 // 5, needed * 4 // 5, 50_000):
        remount(disk, f"size={size}k")
        begun = (disk / "run" / "scenario.json").exists()
        if not begun:
            shutil.rmtree(disk / "run", ignore_errors=True)  # nothing to go on from
        start = (
            ["--resume", str(disk / "run")]
            if begun
            else ["tiny.toml", "--engine", "inprocess", "--out", str(disk / "run")]
        )
        result = casam("run", *start, cwd=tmp_path)
        if result.returncode == 0:
            break
        lines.append(refusal(result))
        # What is there is whole.
        for log in disk.glob("run/institutions/*/private/audit.jsonl"):
            assert broken(read_log(log)) is None
        if (disk / "run" / "bank" / "manifest.json").exists():
            assert not any(verify(disk / "run" / "bank").values())
    assert result.returncode == 0, result.stderr
    assert len(lines) == 3
    assert summary_of(disk / "run")["matrix"] == summary_of(whole)["matrix"]
    assert Bank.open(whole / "bank").digest == Bank.open(disk / "run" / "bank").digest


def test_a_read_only_disk_is_one_line(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    remount(disk, "ro")
    result = casam("run", "tiny.toml", "--engine", "inprocess", "--out", str(disk / "run"), cwd=tmp_path)
    assert "Read-only file system" in refusal(result)
    assert not list(disk.iterdir())
