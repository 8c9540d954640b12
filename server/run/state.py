"""The state of a run on disk. After a crash, the files hold a complete state: the new one or the one before.

stages/NNNN.json holds the results of one stage (0000: of the frozen backbone) and never changes. state.json
lists the hashes of these files and holds the other fields of a State. It is written when a stage's task is
learned, when canaries rejected its entries, and when all institutions are evaluated; there a stopped run
resumes (`casam run --resume`). Learning is seeded by stage, so the run ends with the same bits as an
uninterrupted run. Stored private releases are sent again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.errors import RunError
from casam_core.files import make_folder
from casam_core.methods import SHARED
from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.protocol.compressed_text import compress, expand
from casam_core.protocol.messages import Forecast, ForgetReply, Holding
from server.evaluation import StageScores
from server.federation.directory import Member
from server.learning import LearnedLayer
from server.run.run_folder import RunFolder
from server.stage import Learned, Stage, State
from server.unlearning import Held, Unlearned

SCHEMA = 4
READS = (3, SCHEMA)
"""Schema 3 has no stage that is learned and not evaluated."""
FILE, STAGES = "state.json", "stages"


DATA_CLASSES = (
    Stage, Learned, StageScores, Statistics, Estimate, LearnedLayer, Unlearned, ForgetReply, Held,
    Member, Holding, Forecast,
)  # fmt: skip
KNOWN: dict[str, type[Any]] = {cls.__name__: cls for cls in DATA_CLASSES}


DAMAGED = (KeyError, TypeError, ValueError, AssertionError, AttributeError)
"""Exceptions while reading a damaged file."""

ELSEWHERE = ("zero_shot", "stages", "bank")
"""Fields of a State that are stored in other files."""


def save(folder: RunFolder, state: State) -> State:
    """Write the state, and before it the results of a stage without a file; until then the old one is valid.

    Returns the state with the hash of the new file.
    """
    folder.sync_events()  # what happened before the state is not told again
    if len(state.files) <= len(state.stages):
        newest = compact(encoded(state.stages[-1] if state.stages else state.zero_shot))
        make_folder(folder.path / STAGES)
        folder.write_bytes(stage_file(len(state.stages)), newest)
        state = replace(state, files=(*state.files, digest_of(newest)))
    body = {
        field.name: encoded(getattr(state, field.name))
        for field in fields(State)
        if field.name not in ELSEWHERE
    }
    folder.write_bytes(FILE, compact({"schema": SCHEMA, "sha256": digest_of(compact(body)), "state": body}))
    return state


def stage_file(number: int) -> str:
    """Path of a stage's results, relative to the run folder."""
    return f"{STAGES}/{number:04d}.json"


def restore(folder: RunFolder) -> State | None:
    """The state of an interrupted run; None if no stage was finished. Raises RunError."""
    path = folder.path / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        body = content["state"]
        if content["schema"] not in READS:
            raise RunError(
                f"{path} has schema {content['schema']}, this version reads {SCHEMA}; resume with the "
                "version that started the run"
            )
        check_digest(path, compact(body), content["sha256"])
        known = decoded(body)
        zero_shot, *stages = (
            read_stage(folder, number, digest) for number, digest in enumerate(known["files"])
        )
        shared = any(item.task == SHARED for item in known["held"])
        bank = folder.path / "bank"  # methods with one layer for all tasks have a bank per stage
        bank = bank / f"stage-{len(stages) + (known.get('learned') is not None)}" if shared else bank
        return State(zero_shot, tuple(stages), Bank.open(bank), **known)
    except DAMAGED as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); start the run anew") from error


def read_stage(folder: RunFolder, number: int, digest: str) -> Any:
    """One stage's results. Raises RunError."""
    path = folder.path / stage_file(number)
    try:
        data = path.read_bytes()
        check_digest(path, data, digest)
        found = decoded(json.loads(data))
        assert isinstance(found, Stage if number else StageScores)
    except (OSError, *DAMAGED) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); start the run anew") from error
    return found


def check_digest(path: Path, data: bytes, digest: str) -> None:
    """Raise RunError if the file's content differs from its digest."""
    if digest_of(data) != digest:
        raise RunError(f"{path} was altered; the run cannot be resumed from it, start it anew")


def digest_of(data: bytes) -> str:
    """SHA-256 of a part of the state, as bytes of its file."""
    return hashlib.sha256(data).hexdigest()


def compact(body: Any) -> bytes:
    """The canonical JSON of a file."""
    return json.dumps(body, sort_keys=True, allow_nan=False).encode()


def encoded(value: Any) -> Any:
    """The value in JSON types: dataclasses by name, arrays as compressed base64, tuples apart from lists."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
        return {"~": type(value).__name__, **content}
    if isinstance(value, np.ndarray):
        # Compressed, because histograms are nearly all zeros.
        data = compress(np.ascontiguousarray(value).tobytes())
        return {"~": "array", "dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    if isinstance(value, Policy):
        return {"~": "policy", "fields": value.model_dump(mode="json")}
    if isinstance(value, tuple):
        return {"~": "tuple", "items": [encoded(item) for item in value]}
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    return value


def decoded(value: Any) -> Any:
    """The inverse of encoded."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    content = {key: decoded(item) for key, item in value.items() if key != "~"}
    match value.get("~"):
        case None:
            return content
        case "array":
            flat = np.frombuffer(expand(value["data"]), np.dtype(value["dtype"]))
            return flat.reshape(value["shape"]).copy()
        case "tuple":
            return tuple(content["items"])
        case "policy":
            return Policy.model_validate(value["fields"])
        case name:
            return KNOWN[name](**content)
