"""Reading a request of a secure sum: every setting is there, has its form, and nothing else is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flwr.common.secure_aggregation.secaggplus_constants import Key

from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.secure_sum import (
    AGREE,
    COLLECT,
    MOST_MEMBERS,
    SETUP,
    SHARE_KEYS,
    SIGNATURES,
    SIGNERS,
    UNMASK,
    SecureRequest,
)
from casam_core.protocol.wire import unpacked

Protocol = dict[str, Any]
"""The settings in a request of one exchange: Flower's, and our signatures."""


def read(request: SecureRequest) -> Protocol:
    """The protocol's settings in a request. Raises RefusalError (sum-broken) if they cannot be read."""
    try:
        protocol = dict(unpacked(request.protocol))
    except Exception as error:  # reading unknown bytes can raise any exception
        raise RefusalError(Outcome.SUM_BROKEN, "the exchange cannot be read") from error
    forms = FORMS.get(request.step, {})
    keys = dict.fromkeys(NUMBERS, pair) if request.step == SHARE_KEYS else {}
    valid = all((keys | forms).get(key, nothing)(value) for key, value in protocol.items())
    if not valid or forms.keys() - protocol.keys() or protocol[Key.STAGE] != request.step:
        raise RefusalError(Outcome.SUM_BROKEN, f"{request.step}: a setting is missing or has another form")
    return protocol


def byte_strings(value: Any) -> bool:
    """Whether this is a list of byte strings, at most one per member."""
    return type(value) is list and len(value) <= MOST_MEMBERS and all(type(item) is bytes for item in value)


def numbers(value: Any) -> bool:
    """Whether this is a list of different members' numbers."""
    whole = type(value) is list and all(type(item) is int for item in value)
    return whole and len(value) <= MOST_MEMBERS and len(set(value)) == len(value)


def whole(value: Any) -> bool:
    """Whether this is an integer; True is none."""
    return type(value) is int


def real(value: Any) -> bool:
    """Whether this is a positive, finite floating-point number."""
    return type(value) is float and 0 < value < math.inf


def text(value: Any) -> bool:
    """Whether this is a text."""
    return type(value) is str


def pair(value: Any) -> bool:
    """Whether these are two byte strings: a member's keys."""
    return byte_strings(value) and len(value) == 2


def nothing(value: Any) -> bool:
    """No value at all is allowed."""
    return False


NUMBERS = frozenset(str(number) for number in range(1, 1000))
"""Members' numbers, as they name their keys."""

FORMS: dict[str, dict[str, Callable[[Any], bool]]] = {
    SETUP: {
        Key.STAGE: text,
        Key.MAX_WEIGHT: real,
        Key.CLIPPING_RANGE: real,
        **dict.fromkeys(
            (Key.SAMPLE_NUMBER, Key.SHARE_NUMBER, Key.THRESHOLD, Key.TARGET_RANGE, Key.MOD_RANGE), whole
        ),
    },
    SHARE_KEYS: {Key.STAGE: text, SIGNATURES: byte_strings},  # and two keys by each member's number
    COLLECT: {Key.STAGE: text, Key.CIPHERTEXT_LIST: byte_strings, Key.SOURCE_LIST: numbers},
    AGREE: {Key.STAGE: text, Key.ACTIVE_NODE_ID_LIST: numbers},
    UNMASK: {
        Key.STAGE: text,
        Key.ACTIVE_NODE_ID_LIST: numbers,
        Key.DEAD_NODE_ID_LIST: numbers,
        SIGNERS: numbers,
        SIGNATURES: byte_strings,
    },
}
"""The settings in a request of each exchange, all of them required."""
