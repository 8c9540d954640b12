"""Sections of a scenario about who takes part: what goes wrong, who is waited for, what is let in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from casam_core.config.section import Section


class FaultSpec(Section):
    """What goes wrong at a simulated institution, drawn from the run's seed; real sites never obey it."""

    drop_rate: float = Field(
        0.0, ge=0, lt=1, description="Chance of every answer to be lost on its way; it is asked again."
    )
    delay: float = Field(0.0, ge=0, description="Seconds by which every answer is late.")
    slow_factor: float = Field(1.0, ge=1, description="How many times as long all its work takes.")
    crash_at: int | None = Field(
        None, ge=0, description="Stage in which it breaks down once, its work done and not yet sent."
    )
    gone_at: int | None = Field(None, ge=0, description="First stage from which it never answers again.")
    attack: str | None = Field(
        None,
        description="It is hostile: a name in client.simulation.adversaries.ATTACKS (docs/reliability.md).",
    )
    attack_at: int = Field(1, ge=0, description="First stage of its attack.")


class DeadlineSpec(Section):
    """How long the server waits, in seconds, before it goes on without an answer."""

    connect: float = Field(
        600.0, gt=0, description="For the institutions to appear, load the backbone and open their data."
    )
    train: float = Field(7200.0, gt=0)
    evaluate: float = Field(7200.0, gt=0)
    retries: int = Field(
        2, ge=0, description="How often an institution is looked for and asked again whose node went away."
    )


class ParticipationSpec(Section):
    """When a stage goes on without somebody."""

    quorum: int = Field(1, ge=1, description="Holders whose layers a round of training needs.")
    missing: Literal["stop", "skip"] = Field(
        "stop",
        description="Below the quorum, and when an institution is not found again. stop: the run ends, and "
        "`casam run --resume` goes on. skip: the task keeps the identity, and the others go on.",
    )


class AdmissionSpec(Section):
    """What is looked at before something that was learned counts (docs/reliability.md)."""

    norm_factor: float | None = Field(
        10.0,
        gt=1,
        description="A layer is rejected that moved so many times as far from its beginning as the median of "
        "its peers (layers of other holders, else of other tasks). Off: any distance.",
    )
    canary_share: float | None = Field(
        0.2,
        gt=0,
        lt=1,
        description="A new entry is quarantined when it claims a larger share of the validation images of an "
        "older task, as the task's holders say. Off: nobody is asked.",
    )
    megabytes: float = Field(256.0, gt=0, description="A larger answer is rejected.")
