"""Errors a person is meant to read: one line that says what was expected, found, where, and what to do."""

from __future__ import annotations

import importlib
from typing import Any


class CasamError(Exception):
    """A fault in the input or the environment, not in the program.

    Commands print it as one line and exit with status 2; anything else is a defect and shows a
    traceback. At an institution the text never leaves: only `code` does (client/release/outbox.py).
    """

    code = "error"


class ScenarioError(CasamError):
    """The scenario cannot be run as written."""

    code = "scenario"


class StudyError(CasamError):
    """The study cannot be run as written."""

    code = "study"


class PolicyError(CasamError):
    """An institution's policy file is missing or cannot be read."""

    code = "policy"


class DataError(CasamError):
    """An institution's dataset is missing, broken or too small."""

    code = "data"


class CheckpointError(CasamError):
    """Backbone weights are missing, altered or of another architecture."""

    code = "checkpoint"


class BankError(CasamError):
    """A bank on disk is incomplete, altered or does not fit what was asked."""

    code = "bank"


class PromptError(CasamError):
    """An image or a prompt is not one that can be segmented."""

    code = "prompt"


class DeploymentError(CasamError):
    """A node, its keys or its kit are not as they must be."""

    code = "deployment"


class ExportError(CasamError):
    """A run cannot be written for the tool that was asked for."""

    code = "export"


class RunError(CasamError):
    """The run could not go on; what is on disk is intact."""

    code = "run"


def optional_module(name: str, *, wanted: str, extra: str, error: type[CasamError]) -> Any:
    """The module; `error` with the command that installs it. wanted: what asks for it, as the error says."""
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise error(
            f"{wanted}: expected the packages of the extra {extra!r}, found that {name} cannot be imported; "
            f"run: pip install 'casam[{extra}]'"
        ) from fault
