"""Why an institution does not answer: one word of a closed list each.

An exception's text may hold a path, a pixel or a patient; only its `code` leaves (client/release/outbox.py).
"""

from __future__ import annotations

from casam_core.errors import CasamError
from casam_core.protocol.payload import Outcome


class BankMismatchError(CasamError):
    """The institution's copy of the bank is not the one the server means."""

    code = Outcome.BANK_MISMATCH


class OtherCodeError(CasamError):
    """The server runs another version of the product."""

    code = Outcome.OTHER_CODE


class UnknownScenarioError(CasamError):
    """A request came before the run's identify message (a restarted node)."""

    code = Outcome.UNKNOWN_SCENARIO


class UnknownInstitutionError(CasamError):
    """A request names an institution that this node does not host."""

    code = Outcome.UNKNOWN_INSTITUTION


class PolicyRefusalError(CasamError):
    """The institution's policy says no. clause: the key that does. own: whether the institution, asked to
    train, then learns the task for itself."""

    clause = ""
    own = True


class PoolingRefusedError(PolicyRefusalError):
    """A request would train on images of several institutions together."""

    code, clause = Outcome.POOLING_REFUSED, "no pooling"
    own = False


class SamplesNotKeptError(PolicyRefusalError):
    """A request would train on a task of an earlier stage, whose images this institution let go."""

    code, clause = Outcome.SAMPLES_NOT_KEPT, "keep_samples"
    own = False


class AdapterNotSharedError(PolicyRefusalError):
    """Trained layers stay here."""

    code, clause = Outcome.ADAPTER_NOT_SHARED, "adapter"


class RouterNotSharedError(PolicyRefusalError):
    """Router state and threshold stay here."""

    code, clause = Outcome.ROUTER_NOT_SHARED, "router"


class MetricsNotSharedError(PolicyRefusalError):
    """Scores stay here."""

    code, clause = Outcome.METRICS_NOT_SHARED, "metrics"


class EntriesNotAcceptedError(PolicyRefusalError):
    """Entries of others are not used here."""

    code, clause = Outcome.ENTRIES_NOT_ACCEPTED, "accept_entries"


class NotPresentError(PolicyRefusalError):
    """The institution takes no part in this stage."""

    code, clause = Outcome.NOT_PRESENT, "joins_at, leaves_at"
    own = False


class RoundsSpentError(PolicyRefusalError):
    """All rounds of training that the policy allows were answered."""

    code, clause = Outcome.ROUNDS_SPENT, "max_rounds"


class BytesSpentError(PolicyRefusalError):
    """All bytes that the policy allows were sent."""

    code, clause = Outcome.BYTES_SPENT, "max_bytes"


class BudgetSpentError(PolicyRefusalError):
    """The release would cost more than is left of the privacy budget."""

    code, clause = Outcome.BUDGET_SPENT, "budget"


class DeltaTooLargeError(PolicyRefusalError):
    """With so few images, the budget's delta would allow to publish one of them."""

    code, clause = Outcome.DELTA_TOO_LARGE, "budget.delta"


class NoiseNotPossibleError(PolicyRefusalError):
    """Noise is asked for where there is no private way."""

    code, clause = Outcome.NOISE_NOT_POSSIBLE, "noise"


class CohortTooSmallError(PolicyRefusalError):
    """A secure sum over fewer institutions than the policy asks for, or none at all."""

    code, clause = Outcome.COHORT_TOO_SMALL, "aggregation, minimum_cohort"


class OutOfRangeError(PolicyRefusalError):
    """A value that the secure sum would clip or overflow."""

    code, clause = Outcome.OUT_OF_RANGE, "aggregation"


class SumNotPossibleError(PolicyRefusalError):
    """A secure sum of what cannot be added, or by other rules than this site's."""

    code, clause = Outcome.SUM_NOT_POSSIBLE, "aggregation"


class RepeatedError(CasamError):
    """A request that was answered before."""

    code = Outcome.REPEATED


class NotAllowedError(CasamError):
    """An answer held something that is not on the guard's list."""

    code = Outcome.NOT_ALLOWED


CODES = {
    "data": Outcome.BAD_DATA,
    "checkpoint": Outcome.BAD_CHECKPOINT,
    "policy": Outcome.BAD_POLICY,
}
"""Words for errors of casam_core; those of this module are words already."""


def outcome_of(error: BaseException) -> str:
    """The word that may leave in the error's place."""
    if not isinstance(error, CasamError):
        return Outcome.FAILED
    word = CODES.get(error.code, error.code)
    return word if word in Outcome.ALL else Outcome.FAILED
