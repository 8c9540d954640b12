"""Plain words for figures, policies and outcomes, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.protocol.outcomes import Outcome

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
MISSING = DASH

KINDS = {
    "query.identify": "introduction",
    "train.align": "training",
    "train.router": "router",
    "train.calibrate": "threshold",
    "evaluate.stage": "scores",
}
"""The exchanges, as the timeline calls them."""


@dataclass(frozen=True)
class Meaning:
    """One outcome. short: for a cell. long: what it means for the run."""

    short: str
    long: str


OUTCOMES: dict[str, Meaning] = {
    Outcome.OK: Meaning("answered", "Answered."),
    Outcome.BAD_DATA: Meaning("data unreadable", "Its own images could not be read; its log says which."),
    Outcome.BAD_CHECKPOINT: Meaning("weights unreadable", "Its copy of the frozen backbone is not usable."),
    Outcome.OTHER_CODE: Meaning("another version", "It runs another version of casam than the server."),
    Outcome.UNKNOWN_SCENARIO: Meaning("restarted", "It had not heard of the run: the node was restarted."),
    Outcome.UNKNOWN_INSTITUTION: Meaning("not hosted there", "The node asked does not host it."),
    Outcome.POOLING_REFUSED: Meaning("refuses pooling", "Its images are not pooled with others' images."),
    Outcome.SAMPLES_NOT_KEPT: Meaning(
        "images let go", "It does not keep images of earlier tasks to train on."
    ),
    Outcome.BANK_MISMATCH: Meaning(
        "other bank", "Its copy of the bank differed; it was sent the whole bank."
    ),
    Outcome.BAD_POLICY: Meaning(
        "policy unreadable", "Its policy file could not be read, so it took no part."
    ),
    Outcome.ADAPTER_NOT_SHARED: Meaning(
        "layer stays there", "What it learns stays with it; for the others the task keeps frozen SAM."
    ),
    Outcome.ROUTER_NOT_SHARED: Meaning(
        "router stays there", "Others cannot recognise its images; they use the entry by its name alone."
    ),
    Outcome.METRICS_NOT_SHARED: Meaning(
        "kept to itself", "Its scores stay with it: cells of the matrix that need them are empty."
    ),
    Outcome.ENTRIES_NOT_ACCEPTED: Meaning("takes no entries", "It does not use what others learned."),
    Outcome.NOT_PRESENT: Meaning("not present", "Its policy takes no part in this stage."),
    Outcome.ROUNDS_SPENT: Meaning("rounds spent", "It has answered as many rounds as its policy allows."),
    Outcome.BYTES_SPENT: Meaning("bytes spent", "It has sent as much as its policy allows."),
    Outcome.BUDGET_SPENT: Meaning(
        "privacy budget spent", "The release would have cost more than is left of its privacy budget."
    ),
    Outcome.DELTA_TOO_LARGE: Meaning(
        "too few images for its delta", "With so few images its delta would allow to publish one of them."
    ),
    Outcome.NOISE_NOT_POSSIBLE: Meaning("no private way", "It asks for noise where there is no private way."),
    Outcome.COHORT_TOO_SMALL: Meaning(
        "too few to hide among", "A secure sum would have held fewer institutions than it asks for."
    ),
    Outcome.OUT_OF_RANGE: Meaning("out of range", "A value would have been clipped by the secure sum."),
    Outcome.SUM_NOT_POSSIBLE: Meaning(
        "no such sum", "The secure sum was of something that cannot be added, or by other rules than its own."
    ),
    Outcome.REPEATED: Meaning("asked twice", "The request was answered before; nothing left a second time."),
    Outcome.NOT_ALLOWED: Meaning("held by its guard", "Its answer held something that may not leave."),
    Outcome.FAILED: Meaning("failed", "Something went wrong there; its own log says what."),
    "rejected": Meaning("rejected", "What it sent does not count (docs/reliability.md)."),
    "no-answer": Meaning("no answer in time", "No answer came before the deadline."),
    "unreachable": Meaning("unreachable", "Its node could not be reached or stopped."),
    "unreadable": Meaning("unreadable answer", "What it sent could not be read as an answer."),
}
"""Every outcome of an exchange (casam_core.protocol.outcomes.Outcome, server.federation.exchange)."""


def policy_in_words(policy: Policy) -> tuple[str, ...]:
    """A policy as short sentences, in the order of what matters most to others."""
    said = [learned("layers", policy.adapter), learned("routers", policy.router)]
    said.append(
        {
            "exact": "shares exact scores",
            "noisy": "shares scores with noise",
            "never": "shares no scores",
        }[policy.metrics]
    )
    if "secagg" in (policy.adapter.aggregation, policy.router.aggregation):
        said.append(f"secure sums need {policy.minimum_cohort} institutions or more")
    if not policy.accept_entries:
        said.append("uses no entries of others")
    if policy.keep_samples:
        said.append("keeps images for later stages")
    if policy.joins_at:
        said.append(f"joins at stage {policy.joins_at}")
    if policy.leaves_at is not None:
        what = ", and what it taught is deleted" if policy.on_leave == "unlearn" else ""
        said.append(f"leaves at stage {policy.leaves_at}{what}")
    if policy.max_rounds is not None:
        said.append(f"answers {policy.max_rounds} rounds at most")
    if policy.max_bytes is not None:
        said.append(f"sends {size(policy.max_bytes)} at most")
    return tuple(said)


def learned(what: str, policy: LearnedPolicy) -> str:
    """`shares layers with noise, in secure sums only`"""
    if policy.share == "never":
        return f"keeps its {what}"
    noise = " with noise" if policy.noise == "dp" else ""
    return f"shares {what}{noise}" + (", in secure sums only" if policy.aggregation == "secagg" else "")


def fraction(value: float | None) -> str:
    """`0.812`"""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.012`, with a true minus sign, and never a signed zero."""
    if value is None:
        return MISSING
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else MINUS) + text


def points(value: float | None) -> str:
    """A difference of fractions in points: `+1.2`."""
    return MISSING if value is None else signed(100 * value, 1)


def percent(value: float | None) -> str:
    """A share: `93 %`, below one tenth of a percent `< 0.1 %`."""
    if value is None:
        return MISSING
    share = 100 * value
    if 0 < share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %".replace(".0 %", " %")


def count(value: float | None) -> str:
    """`12,345`"""
    return MISSING if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes as a person reads them: `1.4 MB`."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError  # the last unit always returns


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`"""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; of very many the first few."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
