"""What the exchanges of a secure sum may hold: keys, encrypted shares of keys, masked arrays.

The arrays are checked before they are masked (client/secagg/member.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from casam_core.protocol.limits import Allowed, AnswerError, ArraySpec
from casam_core.protocol.messages import ENVELOPE, Sender, allowed_in
from casam_core.protocol.payload import AUDIT, Payload, digest_of
from casam_core.protocol.secure_sum import (
    COLLECT,
    EXCHANGE_SETTINGS,
    IMPROVED,
    KINDS,
    SecureReply,
    fault_in,
    masked_array,
)
from casam_core.protocol.wire import packed, unpacked


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
    try:
        fault = fault_in(reply.step, protocol, reply.names)
        if fault is None and reply.step == COLLECT:
            files = cast(list[bytes], protocol["masked_params"])
            fault = fault_in_shapes(reply.names, files[1:], summed_forms(reply.summed, sender))
    except Exception as error:
        raise AnswerError("train: not an exchange of a secure sum") from error
    if fault is not None:
        raise AnswerError(f"train {reply.step}: {fault}")


def fault_in_shapes(
    names: Sequence[str], files: Sequence[bytes], forms: Mapping[str, list[ArraySpec]]
) -> str | None:
    """What is wrong with the names and shapes of masked arrays; None if they are those of the open answer."""
    if not set(names) <= set(forms):
        return "unknown names of arrays"
    for name, data in zip(names, files, strict=True):
        shape = masked_array(data).shape
        if not any(form.has_shape(shape) for form in forms[name]):
            return f"{name} has shape {shape}"
    return None


def summed_forms(kind: str, sender: Sender) -> dict[str, list[ArraySpec]]:
    """By `group/key`, the forms of the summed arrays: those of the open answer of this kind."""
    forms = {IMPROVED: [ArraySpec(np.float64, (1,))]}
    for group, alternatives in allowed_in(kind, sender).groups.items():
        for alternative in alternatives:
            for key, spec in alternative.arrays.items():
                forms.setdefault(f"{group}/{key}", []).append(spec)
    return forms
