"""Payloads that a hostile node or server could send: honest ones with a few changes, drawn from a seed.

    python -m tests.fuzz.hostile --each 100000

counts, by kind of message, how the server's path (exchange, check, reading, admission, merging) and the
client's path (reading, permission) end. Anything but a value or a named outcome is a fault and is raised.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import Array

from casam_core.protocol.payload import Payload, in_order
from casam_core.protocol.wire import CONFIG, deserialise, serialise

NAMES = (
    "layer",
    "router",
    "fold-0",
    "fold-9",
    "histogram",
    "margins",
    "importance",
    "entries",
    "x",
    "",
    "config",
)
KEYS = ("counts", "mean_F", "num-examples", "threshold", "images", "failed", "000000", "protocol", "\x1b[31m")
TEXTS = (
    "",
    "ok",
    "failed",
    "\x1b[2J\x07",
    "a\nb",
    "\u202e",
    "north",
    "polyp",
    "{}",
    "[]",
    '{"a": 1}',
    "0" * 64,
    "x" * 5000,
)
INTEGERS = (0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**62, -(2**62))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-308, 1e38, 1e308, float("nan"), float("inf"), float("-inf"))
VALUES = (0.0, -0.0, -1.0, 0.3, 1e-40, 1e6, -1e6, 1e30, 3e38, float("nan"), float("inf"), float("-inf"))
TYPES = (
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "uint8",
    "bool",
    "complex64",
    "<U4",
    ">f4",
    "M8[s]",
)
SHAPES = ((), (0,), (1,), (2,), (512,), (4096,), (1, 1), (3, 0), (2, 3, 4))

Draw = random.Random


def scalar(draw: Draw) -> Any:
    """A setting of any type that Flower carries."""
    choices = [
        lambda: draw.choice(TEXTS),
        lambda: draw.choice(INTEGERS),
        lambda: draw.choice(FLOATS),
        lambda: draw.random() < 0.5,
        lambda: bytes(draw.randrange(256) for _ in range(draw.randrange(9))),
        lambda: [draw.choice(INTEGERS) for _ in range(draw.randrange(4))],
        lambda: [draw.choice(TEXTS)],
    ]
    return draw.choice(choices)()


def odd_array(draw: Draw) -> Any:
    """An array of any type and a small shape."""
    return np.zeros(draw.choice(SHAPES), draw.choice(TYPES))


def altered(array: Any, draw: Draw) -> Any:
    """The array with other values, another type or another shape."""
    how = draw.randrange(6)
    if how == 0:
        return odd_array(draw)
    if how == 1:
        with np.errstate(all="ignore"):
            return array.astype(draw.choice(TYPES[:7]))
    if how == 2:
        return array.reshape(-1)[: draw.randrange(array.size + 1)]
    if how == 3:
        return array[None]
    array = array.copy()
    with np.errstate(all="ignore"):
        if array.dtype.kind not in "fi":
            return array
        value = draw.choice(VALUES)
        if array.dtype.kind == "i":
            value = draw.choice(INTEGERS) % int(np.iinfo(array.dtype).max)
        if how == 4 and array.size:
            array.reshape(-1)[draw.randrange(array.size)] = value
        else:
            array = (
                (array * value).astype(array.dtype) if array.dtype.kind == "f" else np.full_like(array, value)
            )
    return array


def changed_settings(content: dict[str, Any], draw: Draw) -> None:
    """One change among the settings."""
    name = draw.choice([*content, *NAMES, *KEYS]) if content else draw.choice(KEYS)
    if draw.random() < 0.25:
        content.pop(name, None)
    else:
        content[name] = scalar(draw)


def changed_arrays(groups: dict[str, Any], draw: Draw) -> None:
    """One change among the groups of arrays."""
    name = draw.choice([*groups, draw.choice(NAMES)])
    group = dict(groups.get(name, {}))
    how = draw.randrange(5)
    if how == 0:
        groups.pop(name, None)
        return
    if how == 1:
        group[draw.choice(KEYS)] = odd_array(draw)
    elif how == 2:
        groups[draw.choice(NAMES)] = group
        return
    elif group:
        key = draw.choice(list(group))
        value = group.pop(key)
        if how == 3 or draw.random() < 0.8:
            group[key] = altered(value, draw)
    groups[name] = group


def changed_numbers(groups: dict[str, Any], draw: Draw) -> None:
    """One change among the groups of numbers."""
    name = draw.choice(
        [*groups, draw.choice(["align", "router-facts", "score.polyp", "work", "canary", "y"])]
    )
    group = dict(groups.get(name, {}))
    if draw.random() < 0.15:
        groups.pop(name, None)
        return
    key = draw.choice([*group, *KEYS])
    if draw.random() < 0.2:
        group.pop(key, None)
    else:
        group[key] = draw.choice([*INTEGERS, *FLOATS, [1.0, 2.0]])
    groups[name] = group


def mutated(honest: Payload, draw: Draw) -> RecordDict | None:
    """Records made from an honest payload by one to three changes; None if Flower cannot carry them."""
    honest = in_order(honest)
    config: dict[str, Any] = dict(honest.config)
    arrays = {name: dict(group) for name, group in honest.arrays.items()}
    numbers: dict[str, Any] = {name: dict(group) for name, group in honest.metrics.items()}
    for _ in range(draw.randint(1, 3)):
        draw.choice(
            [
                changed_settings,
                lambda c, d: changed_arrays(arrays, d),
                lambda c, d: changed_numbers(numbers, d),
            ]
        )(config, draw)
    try:
        records = carried(config, arrays, numbers)
        retyped(records, draw)
        data = serialise(records)
        if draw.random() < 0.1:
            data = bytearray(data)
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            data = bytes(data)
        return deserialise(data)
    except Exception:  # the records of Flower refuse some content, so it never arrives
        return None


def carried(config: dict[str, Any], arrays: dict[str, Any], numbers: dict[str, Any]) -> RecordDict:
    """Flower's records in any order, without the checks of our own to_records."""
    records = RecordDict({CONFIG: ConfigRecord(config)})
    for name, group in arrays.items():
        records[name] = ArrayRecord({key: Array(np.asarray(value)) for key, value in group.items()})
    for name, group in numbers.items():
        records[name] = MetricRecord(group)
    return records


def retyped(records: RecordDict, draw: Draw) -> None:
    """Sometimes a record of another type under a name, or an array whose bytes are none."""
    if draw.random() < 0.05:
        records[draw.choice([*records, *NAMES])] = draw.choice(
            [MetricRecord({"a": 1}), ConfigRecord({"a": b""}), ArrayRecord({})]
        )
    if draw.random() < 0.1 and records.array_records:
        group = draw.choice(list(records.array_records.values()))
        if group:
            key = draw.choice(list(group))
            array = group[key]
            data = array.data[: draw.randrange(len(array.data) + 1)] + draw.choice(
                [b"", b"\x93NUMPY", b"0" * 99]
            )
            group[key] = Array(
                dtype=draw.choice(TYPES), shape=(2**40,), stype=draw.choice([array.stype, "", "x"]), data=data
            )


Path_ = Callable[[RecordDict], str]
"""From records that arrived to the word that the path ends with."""


def tried(honest: Payload, path: Path_, each: int, seed: int = 0) -> Counter[str]:
    """How `each` mutations of a payload end on a path; the first mutation is drawn from `seed`."""
    words: Counter[str] = Counter()
    for number in range(seed, seed + each):
        draw = random.Random(number)
        records = mutated(honest, draw)
        words["not carried" if records is None else path(records)] += 1
    return words


def main() -> None:
    """Try every kind of message and print the outcomes."""
    import tempfile

    from tests.fuzz.paths import client_paths, server_paths

    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = {**server_paths(Path(folder)), **client_paths(Path(folder))}
        for name, (honest, path) in paths.items():
            if asked.only not in name:
                continue
            begun = time.monotonic()
            words = tried(honest, path, asked.each, asked.seed)
            print(
                f"{name}: {asked.each} in {time.monotonic() - begun:.0f} s: {dict(words.most_common())}",
                flush=True,
            )


if __name__ == "__main__":
    main()
