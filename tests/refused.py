"""An institution's refusal, as tests expect one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from casam_core.protocol.outcomes import Outcome, RefusalError


@contextmanager
def refused(outcome: Outcome, match: str = "") -> Iterator[None]:
    """What is done inside is refused with this word."""
    with pytest.raises(RefusalError, match=match) as caught:
        yield
    assert caught.value.outcome == outcome
