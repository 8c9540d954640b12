"""Errors for people: one line that says where, what was expected, what was found, and what to do."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any


class CasamError(Exception):
    """A fault in the input or the environment, not in the program.

    Commands print it as one line and exit with `status`; any other error is a defect and shows a traceback.
    An institution never sends the text, only a word for it (casam_core/protocol/outcomes.py).
    """

    code = "error"
    status = 2
    """2: the input is bad. 1: the command did its work, and a run or a check failed."""


class ScenarioError(CasamError):
    """The scenario is not valid."""

    code = "scenario"


class StudyError(CasamError):
    """The study is not valid."""

    code = "study"


class PolicyError(CasamError):
    """An institution's policy file is missing or cannot be read."""

    code = "policy"


class DataError(CasamError):
    """An institution's dataset is missing, broken or too small."""

    code = "data"


class CheckpointError(CasamError):
    """Backbone weights are missing, altered or for another architecture."""

    code = "checkpoint"


class BankError(CasamError):
    """A bank on disk is incomplete or altered, or it does not fit the request."""

    code = "bank"


class NoEntryError(BankError, KeyError):
    """A bank has no entry of that task. It is a mapping's own error, so `in` and `get` of a bank answer."""

    __str__ = Exception.__str__


class PromptError(CasamError):
    """An image or a prompt is not valid."""

    code = "prompt"


class DeploymentError(CasamError):
    """A node, its keys or its kit are missing or not valid."""

    code = "deployment"


class ExportError(CasamError):
    """A run cannot be exported to the requested tool."""

    code = "export"


class RunError(CasamError):
    """The run could not continue; the files on disk are intact."""

    code = "run"
    status = 1


class RunInputError(RunError):
    """A folder or an option is not what the command needs: no run began or continued."""

    status = 2


def optional_module(name: str, *, wanted: str, extra: str, error: type[CasamError]) -> Any:
    """Import an optional module. Raises `error` with the command that installs it.

    wanted: what needs it. extra: of this package, such as "report", which has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise error(
            f"{wanted}: expected the packages of the extra {extra!r}, found that {name} cannot be imported; "
            f"run: pip install 'casam[{extra}]'"
        ) from fault


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: the most similar of `names`, or nothing.

    >>> did_you_mean("quikstart", ["quickstart", "refusal"])
    "; did you mean 'quickstart'?"
    """
    from difflib import get_close_matches

    near = get_close_matches(word, [*names], 1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def plain(text: str, longest: int = 200) -> str:
    """Foreign text for logs and terminals: one line of at most `longest` printable characters.

    Every other character becomes `?`: line breaks could forge lines of a log, and escape sequences give
    commands to a terminal.

    >>> plain("two\\nlines")
    'two?lines'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])
