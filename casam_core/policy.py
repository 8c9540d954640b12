"""The policy: what one institution allows. It is the institution's own file; servers read, never write it.

In deployment it lies on the node's disk (client/site.py). In a simulation the scenario may say it in each
institution's place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from casam_core.section import Section


class Policy(Section):
    """What an institution allows. In a simulation the scenario may say it in the institution's place."""

    adapter: Literal["yes", "never"] = Field(
        "yes", description="Share trained layers. never: the institution keeps an entry of its own."
    )
    router: Literal["yes", "never"] = Field(
        "yes", description="Share router state and threshold. never: others use the entry by its name alone."
    )
    metrics: Literal["exact", "never"] = Field(
        "exact", description="Share scores, routes and intervals of the test images."
    )
    accept_entries: bool = Field(True, description="Take and use entries that others made.")
    keep_samples: bool = Field(False, description="Keep images after their stage, to train along later.")
    joins_at: int = Field(
        0, ge=0, description="First stage to take part in; 0 includes the zero-shot measure."
    )
    leaves_at: int | None = Field(None, ge=1, description="First stage not to take part in any more.")
    max_rounds: int | None = Field(
        None, ge=0, description="Rounds of training to answer, in all runs together."
    )
    max_bytes: int | None = Field(None, ge=0, description="Bytes to send, in all runs together.")

    @model_validator(mode="after")
    def _leaves_after_it_joins(self) -> Policy:
        if self.leaves_at is not None and self.leaves_at <= self.joins_at:
            raise ValueError(f"leaves_at must be above joins_at ({self.joins_at}), found {self.leaves_at}")
        return self

    def present(self, stage: int) -> bool:
        """Whether the institution takes part in this stage."""
        return self.joins_at <= stage and (self.leaves_at is None or stage < self.leaves_at)
