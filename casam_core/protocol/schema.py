"""How a message declares its content: once per field.

A message is a frozen dataclass derived from `Message`. The annotation of a field names the part of the
payload that carries it, with its form and its limits::

    @dataclass(frozen=True)
    class AlignReply(Message):
        layer: Annotated[Layer, Group(layer_forms)]
        images: Annotated[int, Figure("align", "num-examples", training_images)]
        improved: Annotated[bool | None, Flag()] = None

Everything else follows from this: writing (`to_payload`), reading (`of`), and the list of what a reply may
contain (`allowed`). Limits that depend on the sender are functions of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Protocol, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from casam_core.protocol.limits import Allowed, GroupSpec, Range
from casam_core.protocol.payload import Payload, Scalar, in_order

ABSENT = object()
"""The result of reading a field that is not in the payload."""


@dataclass
class Draft:
    """A payload that is being written."""

    config: dict[str, Scalar] = field(default_factory=dict)
    arrays: dict[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


class Part(Protocol):
    """The place of one field's value in a payload."""

    def write(self, name: str, value: Any, draft: Draft) -> None:
        """Put the value of the field `name` into the draft."""

    def read(self, name: str, payload: Payload) -> Any:
        """The value, or ABSENT. Raises KeyError, TypeError or ValueError for an invalid value."""

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        """Add this field's limits in a reply of this sender to the list."""


class Setting:
    """A single value among the payload's settings, under the field's name."""

    def fits(self, value: object) -> bool:
        """Whether a reply may contain this value."""
        return False

    def encode(self, value: Any) -> Scalar:
        """The value in the payload."""
        return str(value)

    def decode(self, value: Scalar) -> Any:
        """The inverse of encode."""
        return str(value)

    def write(self, name: str, value: Any, draft: Draft) -> None:
        draft.config[name] = self.encode(value)

    def read(self, name: str, payload: Payload) -> Any:
        return self.decode(payload.config[name]) if name in payload.config else ABSENT

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        allowed.settings[name] = self.fits


@dataclass(frozen=True)
class Text(Setting):
    """A string. pattern: a regular expression for the whole string."""

    pattern: str = ".*"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII) is not None


@dataclass(frozen=True)
class Flag(Setting):
    """Yes or no. when: in which replies it may be."""

    when: Callable[[Any], bool] = lambda sender: True

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        if self.when(sender):
            super().allow(name, allowed, sender)

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def encode(self, value: Any) -> Scalar:
        return bool(value)

    def decode(self, value: Scalar) -> Any:
        return bool(value)


COUNT = Range(0, 2**53, whole=True)
"""Counts up to the largest that is exact as a float."""


@dataclass(frozen=True)
class Amount(Setting):
    """A number; an integer if its range is whole."""

    range: Range = COUNT

    def fits(self, value: object) -> bool:
        return self.range.declares(value)

    def encode(self, value: Any) -> Scalar:
        return int(value) if self.range.whole else float(value)

    def decode(self, value: Scalar) -> Any:
        return self.encode(value)


@dataclass(frozen=True)
class Nested(Setting):
    """A nested value of a pydantic type, as JSON. A reply may contain only the one canonical spelling."""

    type: Any

    def fits(self, value: object) -> bool:
        try:
            return isinstance(value, str) and self.encode(self.decode(value)) == value
        except ValueError:
            return False

    def encode(self, value: Any) -> Scalar:
        return json.dumps(adapter_of(self.type).dump_python(value, mode="json"), sort_keys=True)

    def decode(self, value: Scalar) -> Any:
        return adapter_of(self.type).validate_json(str(value))


@cache
def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Reads and writes values of a type. It is cached because creating one takes milliseconds."""
    return TypeAdapter(type_)


Forms = Callable[[Any], Sequence[GroupSpec]]
"""A function from the sender to the allowed forms of a group of arrays."""


def unlimited(sender: Any) -> Sequence[GroupSpec]:
    """For requests, which no guard checks."""
    return ()


@dataclass(frozen=True)
class Group:
    """A group of arrays under the field's name. key: if set, the value is the group's only array."""

    forms: Forms = unlimited
    key: str = ""

    def write(self, name: str, value: Any, draft: Draft) -> None:
        draft.arrays[name] = {self.key: value} if self.key else value

    def read(self, name: str, payload: Payload) -> Any:
        group = payload.arrays.get(name)
        if group is None:
            return ABSENT
        return group[self.key] if self.key else group

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        allowed.groups[name] = tuple(self.forms(sender))


@dataclass(frozen=True)
class Groups:
    """Several groups of arrays: `PREFIX-0`, `PREFIX-1`, ... forms: one per group."""

    prefix: str
    forms: Forms = unlimited

    def write(self, name: str, value: Any, draft: Draft) -> None:
        draft.arrays |= {f"{self.prefix}-{k}": group for k, group in enumerate(value)}

    def read(self, name: str, payload: Payload) -> Any:
        count = sum(group.startswith(f"{self.prefix}-") for group in payload.arrays)
        return [payload.arrays[f"{self.prefix}-{k}"] for k in range(count)]

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        allowed.groups |= {f"{self.prefix}-{k}": (form,) for k, form in enumerate(self.forms(sender))}


@dataclass(frozen=True)
class Files:
    """Byte strings, as one group of arrays; only in requests."""

    def write(self, name: str, value: Any, draft: Draft) -> None:
        if value:
            draft.arrays[name] = {f"{k:06d}": np.frombuffer(data, np.uint8) for k, data in enumerate(value)}

    def read(self, name: str, payload: Payload) -> Any:
        group = payload.arrays.get(name, {})
        return [group[key].tobytes() for key in sorted(group)]

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        pass


@dataclass(frozen=True)
class Figure:
    """One number of a group of numbers.

    limits: by sender; None if the number must not be released. steps: the numbers that there are, for all.
    """

    group: str
    key: str
    limits: Callable[[Any], Range | None]
    type: Callable[[float], Any] = int
    steps: Range = COUNT

    def write(self, name: str, value: Any, draft: Draft) -> None:
        draft.metrics.setdefault(self.group, {})[self.key] = self.steps.fitting(value)

    def read(self, name: str, payload: Payload) -> Any:
        numbers = payload.metrics.get(self.group)
        if numbers is None or (numbers and self.key not in numbers):
            return ABSENT
        return self.type(numbers[self.key])  # a group without any number is no group of a message

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        if (limits := self.limits(sender)) is not None:
            allowed.numbers.setdefault(self.group, {})[self.key] = limits


class Message:
    """The base class of all messages: a frozen dataclass whose fields are parts of a payload.

    None is not written. An empty value is not written if its field has a default. Reading gives an absent
    field its default. kind: Flower's message type. clause: the policy key that allows this reply.
    receivers: who sees it.
    """

    kind: ClassVar[str] = ""
    clause: ClassVar[str] = ""
    receivers: ClassVar[str] = ""

    @classmethod
    def parts(cls) -> dict[str, tuple[Part, bool]]:
        """(part, has a default) by field."""
        return parts_of(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable

    def to_payload(self) -> Payload:
        """The payload of the message."""
        draft = Draft()
        for name, (part, has_default) in self.parts().items():
            value = getattr(self, name)
            empty = has_default and isinstance(value, str | Sequence | Mapping) and not value
            if value is not None and not empty:
                part.write(name, value, draft)
        return in_order(Payload(draft.config, draft.arrays, draft.metrics))

    @classmethod
    def of(cls, payload: Payload) -> Self:
        """The inverse of to_payload. Raises KeyError, TypeError or ValueError for another message."""
        found = {name: part.read(name, payload) for name, (part, _) in cls.parts().items()}
        return cls(**{name: value for name, value in found.items() if value is not ABSENT})

    @classmethod
    def allowed(cls, sender: Any) -> Allowed:
        """What this kind of reply may contain if it comes from this sender."""
        allowed = Allowed()
        for name, (part, _) in cls.parts().items():
            part.allow(name, allowed, sender)
        return allowed


@cache
def parts_of(cls: type[Message]) -> dict[str, tuple[Part, bool]]:
    """Message.parts, computed once per class."""
    hints = get_type_hints(cls, include_extras=True)
    default_of = {
        item.name: (item.default, item.default_factory)
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]  # every message is a dataclass
    }
    return {
        name: (hints[name].__metadata__[0], default != (dataclasses.MISSING, dataclasses.MISSING))
        for name, default in default_of.items()
    }
