"""What the exchanges of a secure sum may hold: keys, encrypted shares of keys, arrays under masks."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.secaggplus_constants import Key

from casam_core.protocol.answer_rules import Form, Rules
from casam_core.protocol.secure_sum import (
    COLLECT,
    IMPROVED,
    MODULUS,
    MOST_MEMBERS,
    SETUP,
    SHARE_KEYS,
    UNMASK,
    SecureReply,
)

LONGEST_KEY = 400
"""A P-384 public key in PEM has some 220 bytes."""
LONGEST_SHARE = 1024
"""A share of a private key in PEM and one of a seed have some 400 bytes, encrypted some 700."""

EXPECTED = {
    SETUP: {Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2},
    SHARE_KEYS: {Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST},
    COLLECT: {Key.MASKED_PARAMETERS},
    UNMASK: {Key.NODE_ID_LIST, Key.SHARE_LIST},
}


def fault_in_sum(reply: SecureReply, protocol: Mapping[str, Any], rules: Rules) -> str | None:
    """What is not on the list; None for an exchange as it should be.

    rules: for the openly asked kind. Raises whatever reading something else raises.
    """
    if set(protocol) != EXPECTED[reply.step]:
        return f"expected {sorted(EXPECTED[reply.step])}, found {sorted(protocol)}"
    if reply.names and reply.step != COLLECT:
        return "names where no arrays are"
    return FAULTS[reply.step](reply, protocol, rules)


def in_setup(reply: SecureReply, protocol: Mapping[str, Any], rules: Rules) -> str | None:
    """Two public keys."""
    keys = [protocol[Key.PUBLIC_KEY_1], protocol[Key.PUBLIC_KEY_2]]
    good = all(
        isinstance(key, bytes) and key.startswith(b"-----BEGIN PUBLIC KEY-----") and len(key) <= LONGEST_KEY
        for key in keys
    )
    return None if good else "expected two public keys"


def in_share_keys(reply: SecureReply, protocol: Mapping[str, Any], rules: Rules) -> str | None:
    """One encrypted message for every other member."""
    return numbered(protocol[Key.DESTINATION_LIST], protocol[Key.CIPHERTEXT_LIST])


def in_unmask(reply: SecureReply, protocol: Mapping[str, Any], rules: Rules) -> str | None:
    """One share for every member."""
    return numbered(protocol[Key.NODE_ID_LIST], protocol[Key.SHARE_LIST])


def numbered(numbers: list[int], secrets: list[bytes]) -> str | None:
    """As many short byte strings as members, each for another one."""
    members = range(1, 1000)
    if len(numbers) != len(secrets) or len(set(numbers)) != len(numbers) or len(numbers) > MOST_MEMBERS:
        return "expected one share for each member"
    if not all(type(number) is int and number in members for number in numbers):
        return "expected members' numbers"
    if not all(isinstance(secret, bytes) and len(secret) <= LONGEST_SHARE for secret in secrets):
        return f"expected shares of at most {LONGEST_SHARE} bytes"
    return None


def in_collect(reply: SecureReply, protocol: Mapping[str, Any], rules: Rules) -> str | None:
    """The weight and the arrays, under masks: integers below MODULUS in the shapes of what is summed."""
    forms = summed_forms(rules)
    if not reply.names or sorted(set(reply.names)) != list(reply.names) or not set(reply.names) <= set(forms):
        return "names of other arrays"
    masked = [np.load(io.BytesIO(data), allow_pickle=False) for data in protocol[Key.MASKED_PARAMETERS]]
    if len(masked) != 1 + len(reply.names) or masked[0].shape != (1,):
        return "expected a weight and the named arrays"
    for name, array in zip(reply.names, masked[1:], strict=True):
        if not any(form.fits(array.shape) for form in forms[name]):
            return f"{name} has shape {array.shape}"
    for array, data in zip(masked, protocol[Key.MASKED_PARAMETERS], strict=True):
        if array.dtype != np.int64 or array.min(initial=0) < 0 or array.max(initial=0) >= MODULUS:
            return "expected integers under masks"
        if len(data) > 8 * array.size + 256:
            return "more bytes than the array has"
    return None


def summed_forms(rules: Rules) -> dict[str, list[Form]]:
    """By `group/key`, the forms of what is summed."""
    forms: dict[str, list[Form]] = {IMPROVED: [Form(np.dtype(np.float64), (1,))]}
    for group, alternatives in rules.arrays.items():
        for rule in alternatives:
            for key, form in rule.shapes.items():
                forms.setdefault(f"{group}/{key}", []).append(form)
    return forms


FAULTS: dict[str, Callable[[SecureReply, Mapping[str, Any], Rules], str | None]] = {
    SETUP: in_setup,
    SHARE_KEYS: in_share_keys,
    COLLECT: in_collect,
    UNMASK: in_unmask,
}
