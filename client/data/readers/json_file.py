"""A dataset's JSON list file, read into a checked model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from casam_core.errors import DataError
from client.data.damage import DataFaultsError
from client.data.pixels import one_line

Model = TypeVar("Model", bound=BaseModel)


def read_json(source: Path, model: type[Model], content: str) -> Model:
    """The JSON file `source` as a `model`. content: its expected content, for messages.

    Raises DataError; one error lists all entries of a wrong type.
    """
    try:
        parsed = json.loads(source.read_bytes())
    except OSError as fault:
        raise DataError(
            f"{source}: expected a file with {content}, found: {fault.strerror}; correct the path"
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise DataError(
            f"{source}: expected JSON with {content}, found text that is none ({one_line(fault)}); export it "
            f"again"
        ) from fault
    try:
        return model.model_validate(parsed)
    except ValidationError as fault:
        raise DataFaultsError(
            [
                f"{source}: expected {content}, found a fault at "
                f"{'.'.join(map(str, error['loc'])) or 'the top'}: {error['msg']}; correct the entry"
                for error in fault.errors(include_url=False)
            ]
        ) from fault
