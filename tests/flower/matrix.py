"""Try another Flower or another Python: `make flower-next`, or `python -m tests.flower.matrix --help`.

It makes a virtual environment in a temporary folder, with the pins of constraints.txt for all but Flower and
what that Flower needs, and runs one group of tests after another there. docs/compatibility.md keeps one row
for each pair of Python and Flower.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.house import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- rows of tests.flower.matrix -->", "<!-- end of rows -->"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "inside of Flower": (
        "tests/flower",
        "tests/client/node",
        "tests/client/secagg",
        "tests/server/federation",
    ),
    "same bits": ("tests/golden",),
    "simulation": (
        "tests/e2e/test_engines.py::test_the_simulation_and_one_process_give_the_same_numbers",
        "tests/e2e/test_engines.py::test_a_bare_flwr_run_works_from_an_empty_flower_home",
    ),
    "nodes with TLS": ("tests/e2e/test_nodes.py", "tests/e2e/test_deploy_local.py"),
}
"""The columns of the table, and the tests of each."""

VERSIONS = """
import importlib.metadata, platform
print(platform.python_version(), *map(importlib.metadata.version, ("flwr", "ray", "torch")))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--flower", default="", help="a version (default: the newest of the package index)")
    parser.add_argument("--keep", type=Path, help="make the environment in this folder and keep it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="casam-flower-") as scratch:
        python = environment(chosen.keep or Path(scratch) / "venv", chosen.python, chosen.flower)
        versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
        found = {name: outcome(python, tests) for name, tests in GROUPS.items()}
    row = [*versions.stdout.split(), *found.values()]
    PAGE.write_text(with_row(PAGE.read_text(), row))
    print(f"written to {PAGE.relative_to(ROOT)}: {' | '.join(row)}")
    return int(any("failed" in word or "error" in word for word in found.values()))


def environment(folder: Path, python: str, flower: str) -> Path:
    """The Python of an environment with this package and all pins but that of Flower, which is this one."""
    uv = str(Path(sys.executable).with_name("uv"))
    own = folder / "bin" / "python"
    install = [uv, "pip", "install", "--no-config", "--quiet", "--python", str(own)]
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([*install, "-c", "constraints.txt", "-e", ".[dev]"], cwd=ROOT, check=True)
    wanted = f"flwr[simulation]=={flower}" if flower else "flwr[simulation]"
    # Only what is asked for is upgraded, and what it needs.
    subprocess.run([*install, "--upgrade-package", "flwr", wanted], cwd=folder, check=True)
    return own


def outcome(python: Path, tests: tuple[str, ...]) -> str:
    """What pytest says at the end, without the time: `45 passed`, or `1 failed, 44 passed`."""
    print(f"runs {' '.join(tests)}", flush=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))), flush=True)
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", lines[-1] if lines else "")
    return ", ".join(counts) or f"error: pytest ended with {result.returncode}"


def with_row(page: str, row: list[str]) -> str:
    """The page with this row; it replaces an earlier one of the same Python (3.12) and Flower."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    minor = ".".join(row[0].split(".")[:2])
    kept = [line for line in lines[2:] if not re.match(rf"\| {re.escape(minor)}\.\S+ \| {row[1]} ", line)]
    rows = sorted([*kept, f"| {' | '.join(row)} |"])
    head = ["Python", "Flower", "Ray", "PyTorch", *GROUPS]
    shown = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |", *rows]
    return "\n".join([before.rstrip(), "", BEGIN, *shown, END, ""]) + after.removeprefix("\n")


if __name__ == "__main__":
    sys.exit(main())
