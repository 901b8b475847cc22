"""Storage types and the rules for growing a schema."""

from __future__ import annotations

import pyarrow as pa
import pytest

from common.lake.schema import conflicts, has_new_fields, storage_schema

S = pa.string()


@pytest.mark.parametrize(
    ("declared", "stored"),
    [
        (pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC")),
        (pa.dictionary(pa.int32(), S), S),
        (pa.large_string(), S),
        (pa.struct([("at", pa.timestamp("ns", "UTC"))]), pa.struct([("at", pa.timestamp("us", "UTC"))])),
        (pa.map_(S, pa.large_string()), pa.map_(S, S)),
        (pa.large_list(pa.large_binary()), pa.list_(pa.binary())),
        (pa.int32(), pa.int32()),
    ],
)
def test_storage_types(declared: pa.DataType, stored: pa.DataType) -> None:
    assert storage_schema(pa.schema([("c", declared)])).field("c").type == stored


def test_every_column_may_be_null() -> None:
    assert storage_schema(pa.schema([pa.field("c", S, nullable=False)])).field("c").nullable


@pytest.mark.parametrize(
    ("table", "rows", "lines", "grows"),
    [
        ({"a": S}, {"a": S}, 0, False),
        ({"a": S}, {"a": S, "b": S}, 0, True),
        ({"a": S, "b": S}, {"a": S}, 0, False),
        ({"a": S}, {"a": pa.int64()}, 1, False),
        ({"a": pa.struct([("x", S)])}, {"a": pa.struct([("x", S), ("y", S)])}, 0, True),
        ({"a": pa.struct([("x", S)])}, {"a": S}, 1, False),
        ({"a": pa.list_(pa.struct([("x", S)]))}, {"a": pa.list_(pa.struct([("x", pa.int64()), ("y", S)]))}, 1, True),
        ({"a": pa.map_(S, pa.int64())}, {"a": pa.map_(S, S)}, 1, False),
    ],
)
def test_growth(table: dict[str, pa.DataType], rows: dict[str, pa.DataType], lines: int, grows: bool) -> None:
    before, after = pa.struct(list(table.items())), pa.struct(list(rows.items()))
    assert len(conflicts(before, after)) == lines
    assert has_new_fields(before, after) is grows
