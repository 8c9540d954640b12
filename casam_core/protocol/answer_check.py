"""Holding an answer's arrays and numbers against the list of what it may hold
(casam_core.protocol.answer_rules)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casam_core.errors import CasamError
from casam_core.protocol.answer_rules import Arrays, Numbers, Rules
from casam_core.protocol.payload import Payload


class AnswerError(CasamError):
    """An answer holds something that is not on the list; the text names it and holds no value of it."""

    code = "answer"


def check_content(payload: Payload, rules: Rules) -> None:
    """Raise AnswerError, naming what is not on the list."""
    for name, group in payload.arrays.items():
        check_group(name, group, rules.arrays.get(name, ()))
    for name, numbers in payload.metrics.items():
        check_numbers(name, numbers, rules.numbers.get(name))


def check_group(name: str, group: Mapping[str, NDArray[Any]], rules: Sequence[Arrays]) -> None:
    """The arrays of one of the rules; the fault that is named is that of the last."""
    fault = AnswerError(f"array group {name!r} is not on the list")
    for rule in rules:
        try:
            return check_arrays(name, group, rule)
        except AnswerError as error:
            fault = error
    raise fault


def check_arrays(name: str, group: Mapping[str, NDArray[Any]], rule: Arrays) -> None:
    """Exactly the arrays of the rule: none more, none less, each of its dtype, shape and range."""
    if rule.open:
        for key, array in group.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise AnswerError(f"{name}/{key}: expected finite float32 values")
        return
    if (rule.complete and group.keys() != rule.shapes.keys()) or not group.keys() <= rule.shapes.keys():
        odd = sorted(group.keys() ^ rule.shapes.keys())
        raise AnswerError(f"{name}: expected other arrays, {odd[0]!r} is missing or too many")
    for key, array in group.items():
        form = rule.shapes[key]
        if array.dtype != form.dtype or not form.fits(array.shape):
            raise AnswerError(
                f"{name}/{key}: expected {form.dtype} {form.shape}, found {array.dtype} {array.shape}"
            )
        if not np.isfinite(array).all():
            raise AnswerError(f"{name}/{key}: expected finite values")
        if form.least is not None and array.size and array.min() < form.least:
            raise AnswerError(f"{name}/{key}: expected values from {form.least}")
        if form.total is not None and array.sum(dtype=np.float64) > form.total:
            raise AnswerError(f"{name}/{key}: expected counts of at most {form.total} images")


def check_numbers(name: str, numbers: Mapping[str, float], rule: Numbers | None) -> None:
    """Only numbers of the rule, each within its range."""
    if rule is None:
        raise AnswerError(f"number group {name!r} is not on the list")
    for key, value in numbers.items():
        if key not in rule:
            raise AnswerError(f"{name}/{key} is not on the list")
        low, high, whole = rule[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise AnswerError(f"{name}/{key}: expected a finite number")
        if not low <= value <= high or (whole and value != int(value)):
            raise AnswerError(f"{name}/{key}: expected {'a count' if whole else 'a value'} {low}..{high}")
