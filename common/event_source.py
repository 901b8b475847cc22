"""What a feature repo's generators and replays give the producer: a log of messages, and the truth about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.avro.encode import Encoder
from common.avro.framing import frame


class MessageBatch(NamedTuple):
    """Messages in log order, ready to send; all columns have one entry per message.

    keys: binary. values: binary, null for a tombstone. partitions: int32.
    timestamps_ms: int64, never falling within a partition.
    """

    keys: pa.BinaryArray
    values: pa.BinaryArray
    partitions: npt.NDArray[np.int32]
    timestamps_ms: npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroundTruth:
    """What the pipeline must make of a whole log, told by whoever made the log.

    The names are those of the pipeline's counters. `bronze_dlq` and `silver_dlq` are counts by reason. `late` counts
    the rows behind their watermark that reach silver or are too late; a repeat of an event is a duplicate, not late.
    """

    consumed: int
    bronze_dlq: Mapping[str, int]
    duplicates: int
    silver_dlq: Mapping[str, int]
    late: int

    @property
    def bronze(self) -> int:
        return self.consumed - sum(self.bronze_dlq.values())

    @property
    def silver(self) -> int:
        return self.bronze - self.duplicates - sum(self.silver_dlq.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "consumed": self.consumed,
            "bronze": self.bronze,
            "bronze_dlq": sum(self.bronze_dlq.values()),
            "bronze_dlq_reasons": dict(self.bronze_dlq),
            "silver": self.silver,
            "duplicates": self.duplicates,
            "silver_dlq": sum(self.silver_dlq.values()),
            "silver_dlq_reasons": dict(self.silver_dlq),
            "late": self.late,
        }


class EventSource(Protocol):
    """A finite, reproducible log: the same source gives the same messages for the same indices."""

    @property
    def count(self) -> int:
        """Messages in the whole log."""
        ...

    def truth(self) -> GroundTruth:
        """What the pipeline must make of the whole log."""
        ...

    def batches(self, schema_ids: Sequence[int], start: int, stop: int) -> Iterator[MessageBatch]:
        """Messages start..stop-1. `schema_ids` are the registry's ids of the domain's schemas, oldest first."""
        ...

    def write_reference(self, path: Path) -> bool:
        """Writes the reference table that belongs to this log as CSV; False if the domain's own one fits."""
        ...


@dataclass(frozen=True)
class GenerateOptions:
    """What a domain's `generator` is asked for: `generate(schemas, options) -> EventSource`.

    events: messages in total, faults included. sizes: how many entities of a kind exist ({"users": 20_000}); faults:
    exact numbers by kind ({"duplicates": 100}); what is not named takes the generator's default.
    """

    events: int
    seed: int
    partitions: int
    grace_ms: int
    allowed_lateness_ms: int
    max_future_ms: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


class EventWriter:
    """Encodes canonical events with the schema version each was written with, and frames them."""

    def __init__(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        self._encoders = [Encoder(dict(schema)) for schema in schemas]

    def values(
        self, events: pa.RecordBatch, versions: npt.NDArray[np.int8], schema_ids: Sequence[int]
    ) -> pa.BinaryArray:
        """Message values, binary[n]; row i is written with schema `versions[i]` (0 = oldest)."""
        parts, rows = [], []
        for version, (encoder, schema_id) in enumerate(zip(self._encoders, schema_ids, strict=True)):
            index = np.flatnonzero(versions == version)
            if len(index):
                parts.append(frame(schema_id, encoder.encode(events.take(pa.array(index)))))
                rows.append(index)
        order = np.empty(len(events), np.int64)
        order[np.concatenate(rows)] = np.arange(len(events))
        return pa.concat_arrays(parts).take(pa.array(order))
