"""Plain words for figures, policies and outcomes, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casam_core.config.named_parts import FORMS
from casam_core.config.policy import LearnedPolicy, Policy
from casam_core.protocol.outcomes import NoResult, Outcome

if TYPE_CHECKING:
    from casam_core.bank.bank import Bank
    from casam_core.bank.entry_file import Entry, Provenance

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
MISSING = DASH

KINDS = {
    "query.identify": "introduction",
    "train.align": "training",
    "train.router": "router",
    "train.calibrate": "threshold",
    "evaluate.stage": "scores",
}
"""What the timeline calls each kind of exchange."""


@dataclass(frozen=True)
class Meaning:
    """An outcome in words. short: for a table cell. long: what it means for the run."""

    short: str
    long: str


OUTCOMES: dict[str, Meaning] = {
    Outcome.OK: Meaning("answered", "Answered."),
    Outcome.ROLLED_BACK: Meaning(
        "older copy",
        "Its files are older than what the server saw; its officer must restore or accept them.",
    ),
    Outcome.BAD_REQUEST: Meaning("bad request", "It cannot read what the server asked."),
    Outcome.BAD_DATA: Meaning(
        "data unreadable", "The institution could not read its own images; its log names them."
    ),
    Outcome.BAD_CHECKPOINT: Meaning(
        "weights unreadable", "The institution cannot use its copy of the frozen backbone."
    ),
    Outcome.OTHER_PUBLIC_FILE: Meaning(
        "other public file",
        "A public file that the server sent (frame or layer library) is not the one that the scenario names.",
    ),
    Outcome.OTHER_CODE: Meaning(
        "another version", "The institution and the server run different casam code."
    ),
    Outcome.UNKNOWN_SCENARIO: Meaning(
        "restarted", "The node did not know the run, because it was restarted."
    ),
    Outcome.UNKNOWN_INSTITUTION: Meaning("not hosted there", "The node does not host this institution."),
    Outcome.BAD_REGISTER: Meaning(
        "bad register", "Its register or its signing key cannot be used; its own log says why."
    ),
    Outcome.NOT_IN_SCENARIO: Meaning("not in the scenario", "The request does not follow from the scenario."),
    Outcome.WAITING_FOR_APPROVAL: Meaning(
        "waits for approval", "Nobody at the institution approved this scenario (`casam site approve`)."
    ),
    Outcome.TOO_FEW_IMAGES: Meaning(
        "too few images", "It has fewer images of this task than its own minimum."
    ),
    Outcome.POOLING_REFUSED: Meaning("refuses pooling", "The institution does not pool its images."),
    Outcome.SAMPLES_NOT_KEPT: Meaning(
        "images not kept", "The institution keeps no images of earlier tasks for later training."
    ),
    Outcome.BANK_MISMATCH: Meaning(
        "other bank", "Its copy of the bank was different, so the server sent the whole bank."
    ),
    Outcome.NOT_IN_MIRROR: Meaning(
        "not in its mirror", "The institution's mirror lacked a new entry, so the server sent the entries."
    ),
    Outcome.MEMBERS_MISSING: Meaning(
        "members missing", "A relay had no answer of all its members; events.jsonl of its own run says why."
    ),
    Outcome.BAD_POLICY: Meaning(
        "policy unreadable", "The institution could not read its policy or its ledger and took no part."
    ),
    Outcome.ADAPTER_NOT_SHARED: Meaning(
        "layer not shared",
        "The layer stays at the institution; the others use frozen SAM for this task.",
    ),
    Outcome.ROUTER_NOT_SHARED: Meaning(
        "router not shared",
        "Without its router the others cannot recognise its images; they can select the entry by task name.",
    ),
    Outcome.METRICS_NOT_SHARED: Meaning(
        "scores not shared", "Cells of the matrix that need the institution's scores are empty."
    ),
    Outcome.ENTRIES_NOT_ACCEPTED: Meaning(
        "accepts no entries", "The institution does not use the entries of others."
    ),
    Outcome.NOT_PRESENT: Meaning("not present", "By its policy the institution is absent in this stage."),
    Outcome.ROUNDS_SPENT: Meaning("rounds spent", "It has answered as many rounds as its policy allows."),
    Outcome.QUESTIONS_SPENT: Meaning(
        "questions spent", "It has answered as many different requests for this as its policy allows."
    ),
    Outcome.BYTES_SPENT: Meaning("bytes spent", "It has sent as many bytes as its policy allows."),
    Outcome.BUDGET_SPENT: Meaning(
        "privacy budget spent", "The release would have cost more than the rest of its privacy budget."
    ),
    Outcome.DELTA_TOO_LARGE: Meaning(
        "too few images for its delta",
        "With so few images its delta would permit the publication of a whole image.",
    ),
    Outcome.NOISE_NOT_POSSIBLE: Meaning(
        "no private method", "Its policy demands noise, but this computation has no private method."
    ),
    Outcome.COHORT_TOO_SMALL: Meaning(
        "cohort too small", "The secure sum had fewer institutions than its policy demands."
    ),
    Outcome.OUT_OF_RANGE: Meaning("out of range", "The secure sum would have clipped a value."),
    Outcome.SUM_NOT_POSSIBLE: Meaning(
        "no such sum", "These values cannot be added, or the rules of the sum differ from its policy."
    ),
    Outcome.SUM_BROKEN: Meaning(
        "sum broken", "An exchange of the secure sum did not fit its members, keys or earlier exchanges."
    ),
    Outcome.OTHER_MEMBERS: Meaning(
        "other members",
        "An earlier secure sum of these images had other members; both together reveal parts.",
    ),
    Outcome.REPEATED: Meaning("asked twice", "The request was answered before; nothing was sent again."),
    Outcome.NOT_ALLOWED: Meaning("stopped by its guard", "The answer held something that must not leave."),
    Outcome.FAILED: Meaning("failed", "An error happened at the institution; its own log describes it."),
    NoResult.REJECTED: Meaning("rejected", "The server does not accept what it sent (docs/reliability.md)."),
    NoResult.NO_ANSWER: Meaning("no answer in time", "No answer came before the deadline."),
    NoResult.UNREACHABLE: Meaning("unreachable", "The server could not reach its node, or the node stopped."),
    NoResult.UNREADABLE: Meaning("unreadable answer", "The server could not read what it sent as an answer."),
    NoResult.BUNDLE_REFUSED: Meaning(
        "other bundle",
        "Its launcher pins another bundle than this run's (`casam bundle hash`), so it ran nothing.",
    ),
}
"""Every outcome of an exchange (casam_core/protocol/outcomes.py)."""


def policy_in_words(policy: Policy) -> tuple[str, ...]:
    """A policy as short phrases; what matters most to others comes first."""
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
        what = ", and its contributions are deleted" if policy.on_leave == "unlearn" else ""
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
    """`+0.012`, with a true minus sign; zero has no sign."""
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
    """`a, b and c`; of a long list only the first `most` names."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


ENTRY_HEADS = ("task", "layer", "router", "threshold", "trained by", "images", "size", "digest")


def form_in_words(about: Provenance) -> str:
    """`low_rank, rank 8`"""
    ranked = about.form in FORMS and "rank" in FORMS.sections()[about.form].model_fields
    return f"{about.form}, rank {about.rank}" if ranked else about.form


def entry_row(bank: Bank, entry: Entry) -> tuple[str, ...]:
    """One entry of a bank under ENTRY_HEADS."""
    about = entry.provenance
    return (
        entry.task,
        form_in_words(about),
        f"{about.router} on {about.features}",
        "only by name" if entry.threshold is None else f"{entry.threshold:.6g}",
        listed(about.holders) or MISSING,
        count(about.images),
        size(len(bank.bytes_of(entry.task))),
        bank.digest_of(entry.task)[:12],
    )
