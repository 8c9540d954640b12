"""What the exchanges of a secure sum may hold: keys, encrypted shares of keys, masked arrays.

The arrays are checked before they are masked (client/secagg/member.py).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.common.secure_aggregation.secaggplus_constants import Key

from casam_core.protocol.limits import Allowed, AnswerError, ArraySpec
from casam_core.protocol.messages import ENVELOPE, Sender, allowed_in
from casam_core.protocol.payload import AUDIT, Payload, digest_of
from casam_core.protocol.secure_sum import (
    COLLECT,
    EXCHANGE_SETTINGS,
    IMPROVED,
    KINDS,
    MODULUS,
    MOST_MEMBERS,
    SETUP,
    SHARE_KEYS,
    UNMASK,
    SecureReply,
)
from casam_core.protocol.wire import packed, unpacked

LONGEST_KEY = 400
"""Bytes. A P-384 public key in PEM has about 220 bytes."""
LONGEST_SHARE = 1024
"""Bytes. A share of a private key in PEM and a share of a seed have about 400 bytes, encrypted about 700."""

EXPECTED = {
    SETUP: (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2),
    SHARE_KEYS: (Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST),
    UNMASK: (Key.NODE_ID_LIST, Key.SHARE_LIST),
    COLLECT: (Key.MASKED_PARAMETERS,),
}
"""The keys of an institution's answer in each exchange."""


def check_exchange(payload: Payload, sender: Sender) -> None:
    """Raise AnswerError for anything but one exchange of a secure sum."""
    if payload.metrics:
        raise AnswerError("train: a secure sum must not hold open numbers")
    if payload.config.get("sum") not in KINDS:
        raise AnswerError("train: this kind of answer cannot be summed")
    settings = {**ENVELOPE, **EXCHANGE_SETTINGS}
    del settings[AUDIT]  # the outbox adds it after the guard
    Allowed(settings).check(Payload(payload.config))
    try:
        reply = SecureReply.of(payload)
        protocol = unpacked(reply.protocol)
        again = SecureReply(reply.summed, reply.step, packed(protocol), reply.names).to_payload()
    except Exception as error:  # reading unknown bytes can raise any exception
        raise AnswerError("train: not an exchange of a secure sum") from error
    envelope = {key: value for key, value in payload.config.items() if key in ENVELOPE}
    same_groups = payload.arrays.keys() == again.arrays.keys()  # a digest does not see an empty group
    whole = Payload({**again.config, **envelope}, again.arrays)
    if not same_groups or digest_of(whole) != digest_of(payload):
        raise AnswerError("train: more than an exchange of a secure sum")
    if set(protocol) != set(EXPECTED[reply.step]):
        raise AnswerError(f"train: expected {sorted(EXPECTED[reply.step])}, found {sorted(protocol)}")
    if reply.names and reply.step != COLLECT:
        raise AnswerError("train: names of arrays, but no arrays")
    try:
        fault = fault_in(reply, protocol, sender)
    except Exception as error:
        raise AnswerError("train: not an exchange of a secure sum") from error
    if fault is not None:
        raise AnswerError(f"train {reply.step}: {fault}")


def fault_in(reply: SecureReply, protocol: ConfigRecord, sender: Sender) -> str | None:
    """What is wrong with the values of an exchange; None if they are right. May raise any exception."""
    values: list[Any] = [protocol[key] for key in EXPECTED[reply.step]]
    if reply.step == SETUP:
        return None if all(is_public_key(key) for key in values) else "expected two public keys"
    if reply.step == COLLECT:
        return fault_in_masked(reply.names, values[0], summed_forms(reply.summed, sender))
    return fault_in_shares(*values)


def is_public_key(key: object) -> bool:
    """Whether this looks like a public key in PEM."""
    return (
        isinstance(key, bytes) and key.startswith(b"-----BEGIN PUBLIC KEY-----") and len(key) <= LONGEST_KEY
    )


def fault_in_shares(numbers: list[int], secrets: list[bytes]) -> str | None:
    """What is wrong with shares; None if there is one short byte string for each of several members."""
    members = range(1, 1000)
    if len(numbers) != len(secrets) or len(set(numbers)) != len(numbers) or len(numbers) > MOST_MEMBERS:
        return "expected one share for each member"
    if not all(type(number) is int and number in members for number in numbers):
        return "expected members' numbers"
    if not all(isinstance(secret, bytes) and len(secret) <= LONGEST_SHARE for secret in secrets):
        return f"expected shares of at most {LONGEST_SHARE} bytes"
    return None


def fault_in_masked(
    names: tuple[str, ...], files: list[bytes], forms: dict[str, list[ArraySpec]]
) -> str | None:
    """What is wrong with the masked weight and arrays: integers in [0, MODULUS) of the declared shapes."""
    if not names or sorted(set(names)) != list(names) or not set(names) <= set(forms):
        return "unknown names of arrays"
    masked = [np.load(io.BytesIO(data), allow_pickle=False) for data in files]
    if len(masked) != 1 + len(names) or masked[0].shape != (1,):
        return "expected a weight and the named arrays"
    for name, array in zip(names, masked[1:], strict=True):
        if not any(form.has_shape(array.shape) for form in forms[name]):
            return f"{name} has shape {array.shape}"
    for array, data in zip(masked, files, strict=True):
        if array.dtype != np.int64 or array.min(initial=0) < 0 or array.max(initial=0) >= MODULUS:
            return "expected masked integers"
        if len(data) > 8 * array.size + 256:
            return "more bytes than the array needs"
    return None


def summed_forms(kind: str, sender: Sender) -> dict[str, list[ArraySpec]]:
    """By `group/key`, the forms of the summed arrays: those of the open answer of this kind."""
    forms = {IMPROVED: [ArraySpec(np.float64, (1,))]}
    for group, alternatives in allowed_in(kind, sender).groups.items():
        for alternative in alternatives:
            for key, spec in alternative.arrays.items():
                forms.setdefault(f"{group}/{key}", []).append(spec)
    return forms
