"""The base of every table that people write and both sides must read alike."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of a scenario or policy: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
