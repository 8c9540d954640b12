"""Payloads as Flower records and back: the only module of this package that uses Flower.

Server and institutions share it, so that a message means the same on both sides.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from numpy.typing import NDArray

from casam_core.protocol.payload import Job, Payload, Scalar

CONFIG = "config"


def to_records(payload: Payload) -> RecordDict:
    """One ConfigRecord named `config`, an ArrayRecord per array group, a MetricRecord per number group.

    All names are sorted, at every level: an order would be a message of its own, beside the declared fields.
    Raises ValueError if two groups share a name: one would silently replace the other.
    """
    if CONFIG in payload.arrays or CONFIG in payload.metrics:
        raise ValueError(f"no group can be named {CONFIG!r}: that is the settings' name")
    if shared := payload.arrays.keys() & payload.metrics.keys():
        raise ValueError(f"array group and number group share the name {sorted(shared)}")
    groups: dict[str, ArrayRecord | MetricRecord] = {
        name: ArrayRecord({key: Array(np.asarray(value, order="C")) for key, value in sorted(group.items())})
        for name, group in payload.arrays.items()
    }
    groups |= {name: MetricRecord(dict(sorted(numbers.items()))) for name, numbers in payload.metrics.items()}
    records = RecordDict({CONFIG: ConfigRecord(dict(sorted(payload.config.items())))})
    for name in sorted(groups):
        records[name] = groups[name]
    return records


def from_records(records: RecordDict) -> Payload:
    """The inverse of to_records."""
    arrays = {
        name: {key: value.numpy() for key, value in group.items()}
        for name, group in records.items()
        if isinstance(group, ArrayRecord)
    }
    metrics = {
        name: cast(dict[str, float], dict(numbers.items()))
        for name, numbers in records.items()
        if isinstance(numbers, MetricRecord)
    }
    return Payload(settings_of(records), arrays, metrics)


def job_of(records: RecordDict) -> Job | None:
    """The job of a request, without reading its arrays; None if it names no institution."""
    config = settings_of(records)
    return Job.of(Payload(config)) if "institution" in config else None


def settings_of(records: RecordDict) -> dict[str, Scalar]:
    """The settings of a payload, without reading its arrays."""
    return cast(dict[str, Scalar], dict(config_record(records, CONFIG).items()))


def config_record(records: RecordDict, name: str) -> ConfigRecord:
    """One ConfigRecord; `RecordDict.config_records` would copy all of them. Raises KeyError if it is none."""
    found = records[name]
    if not isinstance(found, ConfigRecord):
        raise KeyError(name)
    return found


def serialise(records: RecordDict) -> bytes:
    """The serialised records before transport; every `bytes` in logs and tables counts these."""
    return bytes(recorddict_to_proto(records).SerializeToString())


def deserialise(data: bytes) -> RecordDict:
    """The inverse of serialise."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def packed(settings: ConfigRecord) -> NDArray[np.uint8]:
    """Settings with byte strings and lists, as an array; a payload's settings can only be single values."""
    return np.frombuffer(serialise(RecordDict({CONFIG: settings})), np.uint8)


def unpacked(data: NDArray[np.uint8]) -> ConfigRecord:
    """The inverse of packed."""
    return config_record(deserialise(data.tobytes()), CONFIG)
