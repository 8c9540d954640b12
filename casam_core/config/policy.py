"""The policy: what one institution allows. The institution writes it; the server only reads it.

In deployment the policy is a file on the institution's disk (client/site.py). In a simulation the scenario
may contain the policy of each institution.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from casam_core.config.section import Section

GROUP_IMAGES = 4
"""Images of a group that count where the policy sets no other number."""


class LearnedPolicy(Section):
    """How the institution releases one thing that it learned from training images."""

    share: Literal["yes", "never"] = Field("yes", description="never: it stays at the institution.")
    noise: Literal["none", "dp"] = Field("none", description="dp: differentially private, within the budget.")
    aggregation: Literal["plain", "secagg"] = Field(
        "plain",
        description="secagg: it leaves only inside a sum over at least minimum_cohort institutions.",
    )


class BudgetPolicy(Section):
    """The privacy budget: the limit for all private releases together, in all runs of the ledger."""

    epsilon: float | None = Field(None, gt=0, description="Limit for a task's training images (noise dp).")
    epsilon_metrics: float | None = Field(None, gt=0, description="Limit for test images (metrics noisy).")
    delta: float | None = Field(None, gt=0, lt=1, description="Delta of both; below 1 / number of units.")
    unit: Literal["image", "group"] = Field(
        "image", description="What is protected: one image, or all images of a group (patient, slide)."
    )
    images_per_unit: int | None = Field(
        None,
        ge=1,
        description="How many images of one unit count in private training, statistics and metrics; its "
        "others are left out. The noise of metrics grows with it. Default: 1 for images, 4 for groups.",
    )

    @model_validator(mode="after")
    def _one_image_is_one_unit(self) -> BudgetPolicy:
        if self.unit == "image" and self.images_per_unit not in (None, 1):
            raise ValueError(
                f'images_per_unit must be 1 where unit is "image", found {self.images_per_unit}; leave it '
                'out or set unit = "group"'
            )
        return self

    @property
    def contribution(self) -> int:
        """The largest number of images of a unit that count. It never depends on the images."""
        return self.images_per_unit or (1 if self.unit == "image" else GROUP_IMAGES)


class Policy(Section):
    """What an institution allows. In a simulation the scenario may contain it."""

    adapter: LearnedPolicy = Field(
        LearnedPolicy(), description='Trained layers. share = "never": nobody else gets the entry.'
    )
    router: LearnedPolicy = Field(
        LearnedPolicy(),
        description='Router state and threshold. share = "never": no router can choose the entry; others can '
        "use it only by its name.",
    )
    finder: Literal["yes", "never"] = Field(
        "yes",
        exclude_if=lambda learned: learned == "yes",  # policies without the clause keep their digest
        description="The finder of a layer (alignment.finder); `adapter` also decides how it leaves. never: "
        "the institution's images train no finder, and it returns the finder that it received unchanged.",
    )
    metrics: Literal["exact", "noisy", "never"] = Field(
        "exact",
        description="Scores, routes and intervals of the test images. noisy: with noise, within the budget.",
    )
    canaries: int = Field(
        1,
        ge=0,
        description="How many times per stage the institution answers, with pass or fail, whether a new "
        "entry claims validation images of its own tasks; with noise if `metrics` is noisy. 0: never.",
    )
    budget: BudgetPolicy = BudgetPolicy()
    minimum_cohort: int = Field(
        3,
        ge=2,
        description="Smallest number of institutions in a secure sum. In a sum of two, each can compute the "
        "other's share.",
    )
    accept_entries: bool = Field(True, description="Receive and use entries of others.")
    keep_samples: bool = Field(False, description="Keep images after their stage for later training.")
    joins_at: int = Field(
        0, ge=0, description="First stage to take part in; stage 0 measures frozen SAM before all training."
    )
    leaves_at: int | None = Field(None, ge=1, description="First stage without this institution.")
    on_leave: Literal["keep", "unlearn"] = Field(
        "keep",
        description="unlearn: when the institution leaves, everyone deletes what was learned from it.",
    )
    max_rounds: int | None = Field(
        None, ge=0, description="Largest number of training rounds to answer, in all runs together."
    )
    max_questions: int = Field(
        8,
        ge=1,
        description="Largest number of different requests to answer in one stage, task and round of a "
        "scenario, in all runs together.",
    )
    max_bytes: int | None = Field(
        None, ge=0, description="Largest number of bytes to send in all runs together."
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
        """Whether the institution adds noise to something that was learned from training images."""
        return "dp" in (self.adapter.noise, self.router.noise)

    @property
    def exact(self) -> bool:
        """Whether something that was learned from training images leaves without noise."""
        return any(part.share == "yes" and part.noise == "none" for part in (self.adapter, self.router))

    @property
    def adds_noise(self) -> bool:
        """Whether anything that the institution releases is differentially private."""
        return self.private or self.metrics == "noisy"

    def present(self, stage: int) -> bool:
        """Whether the institution takes part in this stage."""
        return self.joins_at <= stage and (self.leaves_at is None or stage < self.leaves_at)
