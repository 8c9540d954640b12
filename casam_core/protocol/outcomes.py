"""The outcomes of a request: two closed lists of words, the institution's own and the server's.

A refusal is a decision of the policy: nothing is broken, and a second request gets the same reply. Each
refusal names the policy key that decided. The text of an exception may contain a path, a pixel or a patient's
name, so the institution sends only the word.
"""

from __future__ import annotations

from enum import StrEnum

from casam_core.errors import CasamError


class Outcome(StrEnum):
    """One word. clause: the policy key that refuses; "" if the outcome is not a refusal.

    learns_alone: an institution that refuses to train for others with this word learns the task alone.
    """

    clause: str
    learns_alone: bool

    def __new__(cls, word: str, clause: str = "", learns_alone: bool = False) -> Outcome:
        member = str.__new__(cls, word)
        member._value_ = word
        member.clause, member.learns_alone = clause, learns_alone
        return member

    OK = "ok"

    BAD_DATA = "bad-data"  # its own images cannot be read
    BAD_CHECKPOINT = "bad-checkpoint"  # its copy of the frozen backbone cannot be used
    BAD_POLICY = "bad-policy"  # its policy or its ledger cannot be read
    BAD_REGISTER = "bad-register"  # its register or its signing key cannot be used
    OTHER_CODE = "other-code"  # the server runs another version of the product
    OTHER_PUBLIC_FILE = "other-public-file"  # a public file is not the one that the scenario names
    UNKNOWN_SCENARIO = "unknown-scenario"  # a request came before the run's identify message
    NOT_IN_SCENARIO = "not-in-scenario"  # the request does not follow from the scenario
    UNKNOWN_INSTITUTION = "unknown-institution"  # this node does not host the institution
    BANK_MISMATCH = "bank-mismatch"  # its copy of the bank differs from the server's
    NOT_IN_MIRROR = "not-in-mirror"  # the site's mirror lacks an entry that the server named
    MEMBERS_MISSING = "members-missing"  # a relay has no answer of all its members
    BAD_REQUEST = "bad-request"  # the request cannot be read, or an array in it does not have its form
    ROLLED_BACK = "rolled-back"  # its audit log is older than what the server saw of it
    REPEATED = "repeated"  # the request was answered before
    NOT_ALLOWED = "not-allowed"  # the reply contained something that is not on the guard's list
    FAILED = "failed"  # anything else

    WAITING_FOR_APPROVAL = "waiting-for-approval", "approve"  # nobody at the site approved this scenario yet
    TOO_FEW_IMAGES = "too-few-images", "minimum", True
    POOLING_REFUSED = "pooling-refused", "no pooling"
    SAMPLES_NOT_KEPT = "samples-not-kept", "keep_samples"
    NOT_PRESENT = "not-present", "joins_at, leaves_at"
    ADAPTER_NOT_SHARED = "adapter-not-shared", "adapter", True
    ROUTER_NOT_SHARED = "router-not-shared", "router", True
    METRICS_NOT_SHARED = "metrics-not-shared", "metrics", True
    ENTRIES_NOT_ACCEPTED = "entries-not-accepted", "accept_entries", True
    ROUNDS_SPENT = "rounds-spent", "max_rounds", True
    QUESTIONS_SPENT = "questions-spent", "max_questions"
    BYTES_SPENT = "bytes-spent", "max_bytes", True
    BUDGET_SPENT = "budget-spent", "budget", True
    DELTA_TOO_LARGE = "delta-too-large", "budget.delta", True
    NOISE_NOT_POSSIBLE = "noise-not-possible", "noise", True
    COHORT_TOO_SMALL = "cohort-too-small", "aggregation, minimum_cohort", True
    OUT_OF_RANGE = "out-of-range", "aggregation", True
    OTHER_MEMBERS = "other-members", "aggregation", True  # than in an earlier sum over the same images
    SUM_BROKEN = "sum-broken", "aggregation"  # an exchange does not belong to the sum that was begun
    SUM_NOT_POSSIBLE = "sum-not-possible", "aggregation", True


WORDS = frozenset(str(outcome) for outcome in Outcome)
REFUSALS = frozenset(str(outcome) for outcome in Outcome if outcome.clause)


class NoResult(StrEnum):
    """The server's own words where no result came, or none that counts. No institution sends them."""

    UNREACHABLE = "unreachable"  # the node is gone, or its process died
    NO_ANSWER = "no-answer"  # no answer came before the deadline
    UNREADABLE = "unreadable"  # the answer cannot be read
    REJECTED = "rejected"  # the result is invalid (server/defence/admission.py)
    BUNDLE_REFUSED = "bundle-refused"  # the site's launcher pins another bundle (client/node/launcher.py)


class RefusalError(CasamError):
    """An institution refuses a request. The text stays in its own log."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


ERRORS = {
    "data": Outcome.BAD_DATA,
    "checkpoint": Outcome.BAD_CHECKPOINT,
    "policy": Outcome.BAD_POLICY,
    "register": Outcome.BAD_REGISTER,
    "bank": Outcome.BANK_MISMATCH,
    "run": Outcome.BAD_REQUEST,  # the name of a run
}
"""The outcomes of the product's other errors, by their code."""


def outcome_of(error: BaseException) -> Outcome:
    """The word to send instead of the error."""
    if isinstance(error, RefusalError):
        return error.outcome
    if isinstance(error, CasamError):
        return ERRORS.get(error.code, Outcome.FAILED)
    return Outcome.FAILED
