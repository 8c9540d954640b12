"""The scenario's sections about participation: faults, deadlines, quorum, admission."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from casam_core.config.section import Section


class FaultSpec(Section):
    """Faults of a simulated institution, drawn from the run's seed; a deployed institution ignores them."""

    drop_rate: float = Field(
        0.0, ge=0, lt=1, description="Probability that a reply is lost; the server repeats the request."
    )
    delay: float = Field(0.0, ge=0, description="Seconds by which each reply is delayed.")
    slow_factor: float = Field(1.0, ge=1, description="Factor by which all its work takes longer.")
    crash_at: int | None = Field(
        None, ge=0, description="Stage in which it crashes once, after its work and before its reply."
    )
    gone_at: int | None = Field(None, ge=0, description="From this stage on, it never replies again.")
    attack: str | None = Field(
        None,
        description="Makes the institution hostile: a name in client.simulation.adversaries.ATTACKS "
        "(docs/reliability.md).",
    )
    attack_at: int = Field(1, ge=0, description="First stage of its attack.")


class DeadlineSpec(Section):
    """How many seconds the server waits for a reply before it continues without it."""

    connect: float = Field(
        600.0, gt=0, description="Until all institutions are connected and have loaded backbone and data."
    )
    train: float = Field(7200.0, gt=0, description="For a reply to align, router or calibrate.")
    evaluate: float = Field(7200.0, gt=0, description="For a reply to any other request.")
    retries: int = Field(
        2, ge=0, description="How often the server looks for a lost node and repeats its request."
    )


class ParticipationSpec(Section):
    """When a stage continues without some of its institutions."""

    quorum: int = Field(1, ge=1, description="Smallest number of valid layers that a training round needs.")
    missing: Literal["stop", "skip"] = Field(
        "stop",
        description="What happens below the quorum, or if a lost institution does not come back. stop: the "
        "run ends; `casam run --resume` continues it. skip: the task keeps frozen SAM; the run continues.",
    )


class AdmissionSpec(Section):
    """The checks before the server accepts a layer or an entry (docs/reliability.md)."""

    norm_factor: float | None = Field(
        10.0,
        gt=1,
        description="Reject a layer that moved more than this many times as far from its start as the median "
        "of its peers: layers of the other holders, or else of other tasks. null (in JSON): no limit.",
    )
    canary_share: float | None = Field(
        0.2,
        gt=0,
        lt=1,
        description="Quarantine a new entry that claims more than this share of an older task's validation "
        "images; the holders of that task report it. null (in JSON): no such check.",
    )
    megabytes: float = Field(256.0, gt=0, description="Reject a reply that is larger than this.")
