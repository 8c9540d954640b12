"""The policy: what one institution allows. It is the institution's own file; servers read, never write it.

In deployment it lies on the node's disk (client/site.py). In a simulation the scenario may say it in each
institution's place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from casam_core.config.section import Section


class LearnedPolicy(Section):
    """What may be done with one thing that is learned from training images."""

    share: Literal["yes", "never"] = Field("yes", description="never: it stays here.")
    noise: Literal["none", "dp"] = Field("none", description="dp: differentially private, within the budget.")
    aggregation: Literal["plain", "secagg"] = Field(
        "plain", description="secagg: leaves only as part of a sum over minimum_cohort institutions or more."
    )


class BudgetPolicy(Section):
    """How much private releases may say together about one unit, in all runs that the ledger knows."""

    epsilon: float | None = Field(None, gt=0, description="For a task's training images (noise dp).")
    epsilon_metrics: float | None = Field(None, gt=0, description="For its test images (metrics noisy).")
    delta: float | None = Field(None, gt=0, lt=1, description="Must be below 1 / number of units.")
    unit: Literal["image", "group"] = Field(
        "image", description="What is protected: one image, or a group's images together (patient, slide)."
    )


class Policy(Section):
    """What an institution allows. In a simulation the scenario may say it in the institution's place."""

    adapter: LearnedPolicy = Field(
        LearnedPolicy(), description="Trained layers. share never: the institution keeps an entry of its own."
    )
    router: LearnedPolicy = Field(
        LearnedPolicy(),
        description="Router state and threshold. share never: others use the entry by its name alone.",
    )
    metrics: Literal["exact", "noisy", "never"] = Field(
        "exact", description="Scores, routes and intervals of the test images. noisy: within the budget."
    )
    canaries: int = Field(
        1,
        ge=0,
        description="How often a stage the institution says, pass or fail, whether a new entry claims "
        "validation images of its own tasks; noisy where `metrics` are. 0: never.",
    )
    budget: BudgetPolicy = BudgetPolicy()
    minimum_cohort: int = Field(
        3, ge=2, description="Institutions that a secure sum must hold; with two, each derives the other."
    )
    accept_entries: bool = Field(True, description="Take and use entries that others made.")
    keep_samples: bool = Field(False, description="Keep images after their stage, to train along later.")
    joins_at: int = Field(
        0, ge=0, description="First stage to take part in; 0 includes the zero-shot measure."
    )
    leaves_at: int | None = Field(None, ge=1, description="First stage not to take part in any more.")
    on_leave: Literal["keep", "unlearn"] = Field(
        "keep",
        description="unlearn: what was learned here is deleted everywhere when the institution leaves.",
    )
    max_rounds: int | None = Field(
        None, ge=0, description="Rounds of training to answer, in all runs together."
    )
    max_bytes: int | None = Field(
        None, ge=0, description="Bytes to send besides who is there, in all runs together."
    )

    @model_validator(mode="after")
    def _leaves_after_it_joins(self) -> Policy:
        if self.leaves_at is not None and self.leaves_at <= self.joins_at:
            raise ValueError(f"leaves_at must be above joins_at ({self.joins_at}), found {self.leaves_at}")
        return self

    @model_validator(mode="after")
    def _has_the_budget_it_needs(self) -> Policy:
        for key, needed in (("epsilon", self.private), ("epsilon_metrics", self.metrics == "noisy")):
            if needed and (getattr(self.budget, key) is None or self.budget.delta is None):
                raise ValueError(f"noise needs a budget: set budget.{key} and budget.delta")
        return self

    @property
    def private(self) -> bool:
        """Whether anything learned from training images leaves with noise."""
        return "dp" in (self.adapter.noise, self.router.noise)

    def present(self, stage: int) -> bool:
        """Whether the institution takes part in this stage."""
        return self.joins_at <= stage and (self.leaves_at is None or stage < self.leaves_at)
