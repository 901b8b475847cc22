"""The ground truth for Avro: fastavro, one message at a time."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import fastavro
import pyarrow as pa


def write(schema: Any, record: dict[str, Any]) -> bytes:
    """One body."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def read(body: bytes, writer: Any, reader: Any = None) -> Any:
    """The record of a body, which must be read to its last byte."""
    source = io.BytesIO(body)
    record = fastavro.schemaless_reader(source, fastavro.parse_schema(writer), reader and fastavro.parse_schema(reader))
    assert source.tell() == len(body), "trailing bytes"
    return record


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A decoded batch as records in fastavro's shape."""
    return [
        {field.name: _plain(batch.column(field.name)[row].as_py(), field.type) for field in batch.schema}
        for row in range(batch.num_rows)
    ]


def same(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def binary(bodies: Sequence[bytes | None]) -> pa.BinaryArray:
    return pa.array(bodies, pa.binary())


def _plain(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(type_):
        return {key: _plain(item, type_.item_type) for key, item in value}
    if pa.types.is_list(type_):
        return [_plain(item, type_.value_type) for item in value]
    if pa.types.is_struct(type_):
        return {field.name: _plain(value[field.name], field.type) for field in type_}
    return value
