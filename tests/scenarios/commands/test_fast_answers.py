"""Help, completion and refusals of bad input come at once: nothing imports the libraries that compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from scenarios.commands.cli import app

SLOW = ("torch", "flwr", "ray", "pandas", "altair", "matplotlib", "segment_anything", "monai", "nibabel")
"""Each of these takes a good part of a second to import, or seconds."""

RUN_ALL = f"""
import contextlib, io, json, sys
from scenarios.commands.cli import main
answers = []
for words in json.load(sys.stdin):
    sys.argv = ["casam", *words]
    status, err = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    answers.append([status, [name for name in {SLOW} if name in sys.modules], err.getvalue()])
print(json.dumps(answers))
"""

WRONG = """
rnu
run --sett a=1
run quickstart --workers two
bank verify
run nope.toml
run nope
run quickstart --set nope=1
run quickstart --data-root nope
run --resume nope
study nope
compare nope --out new
watch nope
report nope.html
init no/such/folder/mine.toml --site a:b=phantom:polyp
init mine.toml --site a:b=phantom:nope
predict nope.png --bank nope --out mask.png --box 1,1,2,2
bench nope
attack nope
audit verify nope
audit show nope
audit compare nope nope
audit receipt nope --register nope
audit accept nope 1:2 --reason x
ledger show nope
bank show nope
bank verify nope
bank admit nope
bank remove nope polyp --out new
bank merge nope nope --out new
bank import-official nope --out new
bank export-official nope --out new
data check
data check nope
data check --scenario nope
data check --site nope
data preview nope
site init nope
site review --node nope
site approve nope --node nope
site withdraw nope --node nope
scenarios show nope
studies show nope
node nope
deploy local nope
init nope/mine.toml
site init . --out nope/site.toml
site review --markdown nope/page.md
bundle build --out nope/casam.fab
deploy key --out nope/node.key
bench --smoke --json nope/figures.json
""".strip().splitlines()


def commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group of commands."""
    yield name
    for inner, found in getattr(command, "commands", {}).items():
        yield from commands(found, (*name, inner))


def answers(folder: Path, calls: list[list[str]]) -> list[tuple[int, list[str], str]]:
    """(status, slow modules imported so far, stderr) of each call, all in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(calls),
        cwd=folder,
        env=dict(os.environ, COLUMNS="200"),
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(answer) for answer in json.loads(done.stdout)]  # type: ignore[misc]


def test_every_help_imports_nothing_slow(tmp_path: Path) -> None:
    names = list(commands(typer.main.get_command(app)))
    assert ("site", "review") in names
    for name, (status, slow, _) in zip(
        names, answers(tmp_path, [[*name, "--help"] for name in names]), strict=True
    ):
        assert (status, slow) == (0, []), name


def test_bad_input_ends_with_2_in_one_line_and_imports_nothing_slow(tmp_path: Path) -> None:
    for line, (status, slow, err) in zip(
        WRONG, answers(tmp_path, [line.split() for line in WRONG]), strict=True
    ):
        assert (status, slow) == (2, []), (line, err)
        assert len(err.strip().splitlines()) == 1, (line, err)
        assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_lists_import_nothing_slow(tmp_path: Path) -> None:
    calls = [
        ["scenarios"],
        ["studies"],
        ["schema", "scenario"],
        ["bench"],
        ["scenarios", "show", "quickstart"],
    ]
    assert [(status, slow) for status, slow, _ in answers(tmp_path, calls)] == [(0, [])] * len(calls)


CASAM = "import sys; from scenarios.commands.cli import main; sys.argv[0] = 'casam'; main()"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process its memory")
@pytest.mark.parametrize("words", [["--help"], ["run", "nope.toml"], ["rnu"]], ids=" ".join)
def test_an_answer_is_fast_and_small(words: list[str], tmp_path: Path) -> None:
    """Generous, for busy machines: about a third of a second and 50 MB are usual."""
    peak = "lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    measured = f"import atexit; atexit.register({peak}); {CASAM}"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", measured, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - begun < 5
    assert int(done.stdout.split()[-1]) < 120_000, "KB"


def test_completion_lists_commands_and_imports_nothing_slow(tmp_path: Path) -> None:
    look = f"lambda: print([name for name in {SLOW} if name in sys.modules])"
    code = f"import atexit, sys; atexit.register({look}); {CASAM}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=dict(os.environ, _CASAM_COMPLETE="complete_bash", COMP_WORDS="casam scen", COMP_CWORD="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["scenarios", "[]"], done.stderr
