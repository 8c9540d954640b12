"""What makes a run durable: all that the server knows after a stage, in one file, new or old but whole.

state.json holds the results so far, the counters, and what the bank held. A killed run is taken up behind the
last stage that stands there (`casam run --resume`); the stage that was under way is done again. Learning is
seeded by stage, so it ends with the bits of a run that nobody killed; private releases that were stored are
sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from casam_core.bank import Bank
from casam_core.errors import RunError
from casam_core.messages import Forecast, ForgetReply, Holding
from casam_core.policy import Policy
from casam_core.statistics import Estimate, Statistics
from server.directory import Member
from server.evaluation import StageScores
from server.learning import LearnedLayer
from server.run_folder import RunFolder
from server.stage import Stage
from server.unlearning import Held, Unlearned

SCHEMA = 2
FILE = "state.json"


@dataclass(frozen=True)
class State:
    """After some stages. counters: server.institutions.Institutions.counters. layer: carried by methods with
    one for all tasks. held: by the bank, in its order. members: everybody who was ever met, as last seen.
    seconds: spent so far."""

    zero_shot: StageScores
    stages: tuple[Stage, ...]
    counters: Mapping[str, Any]
    layer: LearnedLayer | None
    held: tuple[Held, ...]
    members: Mapping[str, Member]
    seconds: float


DATA_CLASSES = (
    State, Stage, StageScores, Statistics, Estimate, LearnedLayer, Unlearned, ForgetReply, Held,
    Member, Holding, Forecast,
)  # fmt: skip
KNOWN: dict[str, type[Any]] = {cls.__name__: cls for cls in DATA_CLASSES}


def save(folder: RunFolder, state: State) -> None:
    """Write the state; the old one stands until the new one is on the disk."""
    body = encoded(state)
    folder.write_json(FILE, {"schema": SCHEMA, "sha256": digest_of(body), "state": body})


def restore(folder: RunFolder) -> State | None:
    """The state of a run that was interrupted; None where no stage was finished. Raises RunError."""
    path = folder.path / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        body = content["state"]
        if content["schema"] != SCHEMA:
            raise RunError(
                f"{path} has schema {content['schema']}, this version reads {SCHEMA}; resume with the "
                "version that began the run"
            )
        if content["sha256"] != digest_of(body):
            raise RunError(f"{path} was altered; the run cannot be resumed from it, start it anew")
        state = decoded(body)
        assert isinstance(state, State)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); start the run anew") from error
    return state


def set_back(bank: Bank, held: tuple[Held, ...]) -> None:
    """Take out of the bank what a stage that was interrupted put in. Raises RunError when other is missing.

    Entries that an interrupted unlearning took out already are taken out again by the stage that is repeated.
    """
    known = {item.task: item for item in held}
    for task in bank.tasks:
        if task not in known:
            bank.remove(task)
    lost = [item.task for item in held if item.task not in bank.tasks and not item.leaves]
    if lost:
        raise RunError(f"{bank.folder}: the entry of {lost[0]} is gone since the run stopped; start it anew")


def digest_of(body: Any) -> str:
    """SHA-256 of the encoded state."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def encoded(value: Any) -> Any:
    """As JSON knows it: dataclasses by name, arrays in base64, tuples apart from lists."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
        return {"~": type(value).__name__, **content}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
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
    kind = value.get("~")
    if kind is None:
        return {key: decoded(item) for key, item in value.items()}
    return DECODERS.get(kind, _dataclass)(value)


def _array(value: Mapping[str, Any]) -> Any:
    flat = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
    return flat.reshape(value["shape"]).copy()


def _tuple(value: Mapping[str, Any]) -> Any:
    return tuple(decoded(item) for item in value["items"])


def _policy(value: Mapping[str, Any]) -> Any:
    return Policy.model_validate(value["fields"])


def _dataclass(value: Mapping[str, Any]) -> Any:
    content = {key: decoded(item) for key, item in value.items() if key != "~"}
    return KNOWN[value["~"]](**content)


DECODERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "array": _array,
    "tuple": _tuple,
    "policy": _policy,
}
