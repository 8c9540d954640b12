"""Registries of parts, as they are without a test's additions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from casam_core.config.data_spec import READER_NAMES
from casam_core.methods import METHODS
from casam_core.model.backbones import BACKBONES
from casam_core.model.forms import FORMS
from casam_core.routing.routers import ROUTERS
from client.data.open import READERS

REGISTRIES: tuple[dict[str, Any], ...] = (BACKBONES, FORMS, METHODS, READERS, ROUTERS)


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    """Registries lose what a test adds."""
    kept, names = [dict(registry) for registry in REGISTRIES], list(READER_NAMES)
    yield
    for registry, before in zip(REGISTRIES, kept, strict=True):
        registry.clear()
        registry.update(before)
    READER_NAMES[:] = names
