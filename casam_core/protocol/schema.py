"""How a message declares what it holds: once per field.

A message is a frozen dataclass below `Message`. Every field names the part of the payload that carries it,
with its form and its limits::

    @dataclass(frozen=True)
    class AlignReply(Message):
        layer: Annotated[Layer, Group(layer_forms)]
        images: Annotated[int, Figure("align", "num-examples", training_images)]
        improved: Annotated[bool | None, Flag()] = None

Everything else is derived: writing (`to_payload`), reading (`of`), and the list of what an answer may hold
(`allowed`). Limits may depend on who answers what: such a part is given a function of the sender.
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
from casam_core.protocol.payload import Payload, Scalar

ABSENT = object()
"""What reading gives for a field that the payload does not hold."""


@dataclass
class Draft:
    """A payload that is being written."""

    config: dict[str, Scalar] = field(default_factory=dict)
    arrays: dict[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


class Part(Protocol):
    """Where the value of one field stands in a payload."""

    def write(self, name: str, value: Any, draft: Draft) -> None:
        """Put the value of the field `name` into the draft."""

    def read(self, name: str, payload: Payload) -> Any:
        """The value, or ABSENT. Raises KeyError, TypeError or ValueError for what is no such value."""

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        """Put what this sender's answer may hold on the list."""


class Setting:
    """A single value among the payload's settings, under the field's name."""

    def fits(self, value: object) -> bool:
        """Whether a value on the wire may be in an answer."""
        return False

    def encode(self, value: Any) -> Scalar:
        """The value as it travels."""
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
    """A string. pattern: a regular expression for the whole of it."""

    pattern: str = ".*"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII) is not None


@dataclass(frozen=True)
class Flag(Setting):
    """Yes or no."""

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def encode(self, value: Any) -> Scalar:
        return bool(value)

    def decode(self, value: Scalar) -> Any:
        return bool(value)


COUNT = Range(0, 2**53, whole=True)
"""Up to what is exact as a float."""


@dataclass(frozen=True)
class Amount(Setting):
    """A number; a whole one where its range says so."""

    range: Range = COUNT

    def fits(self, value: object) -> bool:
        return type(value) is (int if self.range.whole else float) and self.range.holds(value)

    def encode(self, value: Any) -> Scalar:
        return int(value) if self.range.whole else float(value)

    def decode(self, value: Scalar) -> Any:
        return self.encode(value)


@dataclass(frozen=True)
class Table(Setting):
    """Anything nested, as JSON, of a type that pydantic knows. An answer may hold one spelling of it only."""

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
    """Reads and writes values of a type; making one takes milliseconds."""
    return TypeAdapter(type_)


Forms = Callable[[Any], Sequence[GroupSpec]]
"""By sender, the forms of a group of arrays."""


def unlimited(sender: Any) -> Sequence[GroupSpec]:
    """For requests: nobody's guard looks at them."""
    return ()


@dataclass(frozen=True)
class Group:
    """A group of arrays under the field's name. key: the value is the group's only array, of this name."""

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
    """Several groups of arrays: `PREFIX-0`, `PREFIX-1`, ... forms: of each of them."""

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
    """Byte strings, as one group of arrays; in requests only."""

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
    """One number of a group of numbers. limits: by sender; None where the number may not leave."""

    group: str
    key: str
    limits: Callable[[Any], Range | None]
    type: Callable[[float], Any] = int

    def write(self, name: str, value: Any, draft: Draft) -> None:
        # Flower's records of numbers take no booleans.
        number = float(value) if isinstance(value, bool) else value
        draft.metrics.setdefault(self.group, {})[self.key] = number

    def read(self, name: str, payload: Payload) -> Any:
        numbers = payload.metrics.get(self.group, {})
        return self.type(numbers[self.key]) if self.key in numbers else ABSENT

    def allow(self, name: str, allowed: Allowed, sender: Any) -> None:
        if (limits := self.limits(sender)) is not None:
            allowed.numbers.setdefault(self.group, {})[self.key] = limits


class Message:
    """The base of every message: a frozen dataclass whose fields are declared as parts of a payload.

    None is not written, nor is an empty value of a field that has a default. An absent field has its default.
    kind: Flower's type of the message. clause: the key of an institution's policy that allows this answer.
    """

    kind: ClassVar[str] = ""
    clause: ClassVar[str] = ""

    @classmethod
    def parts(cls) -> dict[str, tuple[Part, bool]]:
        """By field, its part, and whether it has a default."""
        return parts_of(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable

    def to_payload(self) -> Payload:
        """The message as it travels."""
        draft = Draft()
        for name, (part, has_default) in self.parts().items():
            value = getattr(self, name)
            empty = has_default and isinstance(value, str | Sequence | Mapping) and not value
            if value is not None and not empty:
                part.write(name, value, draft)
        return Payload(draft.config, draft.arrays, draft.metrics)

    @classmethod
    def of(cls, payload: Payload) -> Self:
        """The inverse of to_payload. Raises KeyError, TypeError or ValueError for another message."""
        found = {name: part.read(name, payload) for name, (part, _) in cls.parts().items()}
        return cls(**{name: value for name, value in found.items() if value is not ABSENT})

    @classmethod
    def allowed(cls, sender: Any) -> Allowed:
        """What such an answer may hold when it comes from this sender."""
        allowed = Allowed()
        for name, (part, _) in cls.parts().items():
            part.allow(name, allowed, sender)
        return allowed


@cache
def parts_of(cls: type[Message]) -> dict[str, tuple[Part, bool]]:
    """Message.parts; looked up once."""
    hints = get_type_hints(cls, include_extras=True)
    default_of = {
        item.name: (item.default, item.default_factory)
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]  # every message is a dataclass
    }
    return {
        name: (hints[name].__metadata__[0], default != (dataclasses.MISSING, dataclasses.MISSING))
        for name, default in default_of.items()
    }
