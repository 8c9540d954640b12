"""What tests of readers share: a small image, and the text of a DataError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data.dataset import faults_of

RNG = np.random.default_rng(0)


def fault(action: Callable[[], object]) -> str:
    """All faults `action` raises, one a line; each says what was expected and what was found."""
    with pytest.raises(DataError) as caught:
        action()
    faults = faults_of(caught.value)
    for text in (*faults, str(caught.value)):
        assert "\n" not in text
        assert "expected" in text
        assert "found" in text
        assert ";" in text or "found the id" in text, "says what to do"
    return "\n".join(faults)


def keys(reader: str, **keys: Any) -> DataSpec:
    """The options of a reader, as a data table has them."""
    return DataSpec(reader=reader, path="here", **keys)
