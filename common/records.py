"""Schemas of what moves through the pipelines: raw records, dead letters, bronze and silver rows.

Every element is a `pyarrow.RecordBatch` of one of these schemas (gold's is declared per view, see common/domain.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

RAW_SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("kafka_ts_ms", pa.int64(), nullable=False),
        # Running maximum of kafka_ts_ms over the partition's earlier rows, less the grace: a function of the log alone.
        pa.field("watermark_ms", pa.int64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),  # null: a tombstone
    ]
)

ORIGIN_FIELDS = (
    pa.field("_topic", pa.string()),
    pa.field("_partition", pa.int32()),
    pa.field("_offset", pa.int64()),
    pa.field("_kafka_ts_ms", pa.int64()),
    pa.field("_watermark_ms", pa.int64()),
)

# Travel from decode to scrub, so that a row that fails in between can be dead-lettered with its bytes.
RAW_BYTES_FIELDS = (pa.field("_key", pa.binary()), pa.field("_value", pa.binary()))

SCHEMA_ID_FIELD = pa.field("_schema_id", pa.int32())
SCRUBBED_FIELD = pa.field("pii_scrubbed", pa.bool_())
PARTITION_FIELDS = (pa.field("date", pa.string()), pa.field("hour", pa.int32()))

DEAD_LETTER_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("kafka_ts_ms", pa.int64()),
        ("schema_id", pa.int32()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("event_id", pa.string()),
        # Equals kafka_ts_ms: a replay writes the same dead letters.
        ("failed_at_ms", pa.int64()),
    ]
)

HOUR_MS = 3_600_000
_HOURS_PER_DAY = 24


def decoded_schema(event: pa.Schema) -> pa.Schema:
    """What decode gives: event columns, schema id, origin, and the raw bytes."""
    return pa.schema([*_nullable(event), SCHEMA_ID_FIELD, *ORIGIN_FIELDS, *RAW_BYTES_FIELDS])


def bronze_schema(event: pa.Schema) -> pa.Schema:
    """Bronze rows: nested as the event is, partitioned by the hour of the Kafka timestamp."""
    return pa.schema([*_nullable(event), SCHEMA_ID_FIELD, SCRUBBED_FIELD, *ORIGIN_FIELDS, *PARTITION_FIELDS])


def silver_schema(event: pa.Schema, reference_columns: Sequence[str]) -> pa.Schema:
    """Silver rows: flat, with the reference table's columns, partitioned by the hour of the event."""
    return pa.schema(
        [
            *flat_fields(event),
            *(pa.field(name, pa.string()) for name in reference_columns),
            SCHEMA_ID_FIELD,
            SCRUBBED_FIELD,
            *ORIGIN_FIELDS,
            *PARTITION_FIELDS,
        ]
    )


def flat_fields(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[pa.Field]:
    """Leaf columns of nested records: `device.os` becomes `device_os`. Maps and lists stay whole.

    >>> device = pa.struct([("os", pa.string()), ("model", pa.string())])
    >>> [field.name for field in flat_fields(pa.schema([("device", device), ("user", pa.string())]))]
    ['device_os', 'device_model', 'user']
    """
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from flat_fields(field.type, f"{prefix}{field.name}_")
        else:
            yield pa.field(prefix + field.name, field.type)


def partition_columns(time_ms: npt.NDArray[np.int64]) -> tuple[pa.StringArray, pa.Int32Array]:
    """`date` (YYYY-MM-DD, UTC) and `hour` of each instant.

    >>> [c.to_pylist() for c in partition_columns(np.array([0, 90_000_000]))]
    [['1970-01-01', '1970-01-02'], [0, 1]]
    """
    days, hours = np.divmod(time_ms // HOUR_MS, _HOURS_PER_DAY)
    # Dates are formatted once per distinct day: strftime on each row cost more than the rest of the step.
    distinct, codes = np.unique(days, return_inverse=True)
    names = pa.array(np.datetime_as_string(distinct.astype("datetime64[D]")), pa.string())
    return names.take(pa.array(codes)), pa.array(hours.astype(np.int32))


def millis(times: pa.Array) -> npt.NDArray[np.int64]:
    """Instants as milliseconds since 1970: of a timestamp column of any unit, or an int64 column that holds them."""
    if pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("ms", times.type.tz), safe=False).cast(pa.int64())
    view: npt.NDArray[np.int64] = times.to_numpy()
    return view


def _nullable(event: pa.Schema) -> Iterator[pa.Field]:
    # Which columns must be there is the quality rules' business; a scrub policy may drop any of them.
    return (pa.field(field.name, field.type) for field in event)
