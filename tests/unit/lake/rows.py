"""Rows of a small table that the lake's tests write, partitioned by date and hour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from common.lake import Lake, TableSpec, commit, read, stage
from common.lake.staging import StagedFile, decode_staged
from common.publish import Epoch

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("event_time", pa.timestamp("ms", "UTC")),
        ("device", pa.struct([("os", pa.string())])),
        ("properties", pa.map_(pa.string(), pa.string())),
        ("date", pa.string()),
        ("hour", pa.int32()),
    ]
)
SPEC = TableSpec("silver", SCHEMA, ("date", "hour"))
START = datetime(2024, 1, 1, tzinfo=UTC)


def events(hours: Sequence[int | None], prefix: str = "e") -> pa.RecordBatch:
    """One event per entry, that many hours after START; None is an event without a time."""
    times = [None if hour is None else START + timedelta(hours=hour, minutes=i) for i, hour in enumerate(hours)]
    return pa.RecordBatch.from_pydict(
        {
            "id": [f"{prefix}{i}" for i in range(len(hours))],
            "event_time": times,
            "device": [{"os": "ios"}] * len(hours),
            "properties": [[("k", str(i))] for i in range(len(hours))],
            "date": [None if time is None else time.strftime("%Y-%m-%d") for time in times],
            "hour": [None if time is None else time.hour for time in times],
        },
        schema=SCHEMA,
    )


def staged(lake: Lake, *batches: pa.RecordBatch, spec: TableSpec = SPEC) -> list[StagedFile]:
    descriptor = stage(lake, spec, batches)
    return [] if descriptor is None else decode_staged(descriptor)


def write(lake: Lake, number: int, batch: pa.RecordBatch, spec: TableSpec = SPEC) -> int:
    return commit(lake, spec, Epoch("job", number), staged(lake, batch, spec=spec))


def ids(lake: Lake, version: int | None = None) -> list[str]:
    return sorted(read(lake, "silver", ["id"], version=version)["id"].to_pylist())
