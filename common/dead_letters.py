"""Dead letters: what could not go on, with where it came from, why, and its bytes where they are at hand."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from common.records import DEAD_LETTER_SCHEMA


def dead_letters(
    step: str,
    rows: pa.RecordBatch,
    reasons: Sequence[str],
    details: Sequence[str | None],
    id_column: str | None = None,
) -> pa.RecordBatch:
    """One dead letter per row. `rows` has the origin columns and, where known, `_schema_id`, `_key` and `_value`.

    `details` name a field or a fault and never hold a value. `step` is `<layer>/<name>`.
    """
    count = rows.num_rows
    columns = {
        "layer": pa.repeat(step.partition("/")[0], count),
        "step": pa.repeat(step, count),
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
        "failed_at_ms": rows.column("_kafka_ts_ms"),
    }
    if id_column is not None:
        columns["event_id"] = rows.column(id_column)
    for name in ("topic", "partition", "offset", "kafka_ts_ms", "schema_id", "key", "value"):
        if f"_{name}" in rows.schema.names:
            columns[name] = rows.column(f"_{name}")
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in DEAD_LETTER_SCHEMA],
        schema=DEAD_LETTER_SCHEMA,
    )
