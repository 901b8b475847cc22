"""Schemas: what is accepted, what is refused, and the Arrow types they become."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from common.avro.arrow_types import arrow_schema
from common.avro.schema import AvroSchemaError, Record, parse_schema


def record(fields: list[dict[str, Any]], **attributes: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": fields, **attributes}


def test_named_types_are_found_across_namespaces() -> None:
    schema = record(
        [
            {"name": "a", "type": {"type": "enum", "name": "Kind", "symbols": ["X"]}},
            {"name": "b", "type": "Kind"},
            {"name": "c", "type": {"type": "array", "items": "shop.Kind"}},
        ],
        namespace="shop",
    )
    parsed = parse_schema(schema)
    assert isinstance(parsed, Record)
    assert parsed.name == "shop.R"
    assert parsed.fields[0].type == parsed.fields[1].type


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}, "contains itself"),
        (record([{"name": "a", "type": "Unknown"}]), "'Unknown' is not defined"),
        (record([{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]), "a field twice"),
        (record([{"name": "a"}]), "has no 'type'"),
        (record([{"name": "a", "type": {"type": "array"}}]), "has no 'items'"),
        (record([{"name": "a", "type": []}]), "at least one branch"),
        (record([{"name": "a", "type": 3}]), "not int"),
        ({"name": "R"}, "no 'type'"),
        ("long", "must be a record"),
        (record([{"name": "a", "type": ["string", "long"]}]), "does not fit one column"),
    ],
)
def test_unusable_schemas_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(AvroSchemaError, match=message):
        arrow_schema(schema)


def test_a_schema_nested_without_end_is_refused() -> None:
    deep: Any = "long"
    for _ in range(1_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(AvroSchemaError, match="deeper than"):
        arrow_schema(record([{"name": "a", "type": deep}]))


@pytest.mark.parametrize("references", [1, 2])
def test_references_cannot_multiply_without_end(references: int) -> None:
    fields: list[dict[str, Any]] = [{"name": "f0", "type": {"type": "record", "name": "R0", "fields": []}}]
    for level in range(1, 200):
        inner = [{"name": f"g{number}", "type": f"R{level - 1}"} for number in range(references)]
        fields.append({"name": f"f{level}", "type": {"type": "record", "name": f"R{level}", "fields": inner}})
    with pytest.raises(AvroSchemaError, match="more than"):
        arrow_schema(record(fields) | {"name": "Top"})
    assert len(arrow_schema(record(fields[:10]) | {"name": "Top"})) == 10


def test_arrow_types() -> None:
    long, fixed = {"type": "long"}, {"type": "fixed", "name": "F", "size": 2}
    fields = {
        "event_time": (long | {"logicalType": "timestamp-millis"}, pa.timestamp("ms", tz="UTC"), False),
        "local": (long | {"logicalType": "local-timestamp-micros"}, pa.timestamp("us"), False),
        "day": ({"type": "int", "logicalType": "date"}, pa.date32(), False),
        "id": ({"type": "string", "logicalType": "uuid"}, pa.string(), False),
        "odd": ({"type": "string", "logicalType": "timestamp-millis"}, pa.string(), False),
        "price": (fixed | {"logicalType": "decimal", "precision": 4, "scale": 1}, pa.decimal128(4, 1), False),
        "maybe": (["null", "double"], pa.float64(), True),
        "tags": (
            {"type": "map", "values": "string"},
            pa.map_(pa.string(), pa.field("value", pa.string(), False)),
            False,
        ),
    }
    schema = arrow_schema(record([{"name": name, "type": avro} for name, (avro, _, _) in fields.items()]))
    assert schema == pa.schema([pa.field(name, arrow, null) for name, (_, arrow, null) in fields.items()])
