"""Decoder: exact fault codes, limits, resolution, and the behaviour of a batch around a bad message."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest

from common.avro.cursor import FAULTS, MAX_ITEMS
from common.avro.decode import CHUNK_ROWS, Decoder
from common.avro.schema import AvroSchemaError
from tests.unit.avro.reference import binary, read, rows, write


def record(*fields: tuple[Any, ...], name: str = "R") -> dict[str, Any]:
    """A record schema of (name, type[, default]) fields."""
    keys = ("name", "type", "default")
    return {"type": "record", "name": name, "fields": [dict(zip(keys, field, strict=False)) for field in fields]}


def one(type_: Any) -> dict[str, Any]:
    return record(("a", type_))


STRING, LONG = one("string"), one("long")
ENUM = {"type": "enum", "name": "E", "symbols": ["X", "Y"]}
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}


@pytest.mark.parametrize(
    ("schema", "body", "reason"),
    [
        (STRING, b"", "truncated"),
        (STRING, b"\x04a", "truncated"),
        (STRING, b"\x02ab", "trailing_bytes"),
        (STRING, b"\x01", "negative_length"),
        (STRING, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "truncated"),  # a length of 2**63 - 1
        (STRING, b"\x02\xff", "bad_utf8"),
        (STRING, b"\x06\xed\xa0\x80", "bad_utf8"),  # a surrogate
        (LONG, b"\x80" * 5, "truncated"),
        (LONG, b"\xff" * 9 + b"\x02", "varint_too_long"),  # 65 bits
        (LONG, b"\x80" * 10 + b"\x00", "varint_too_long"),
        (one("int"), b"\x80\x80\x80\x80\x10", "int_out_of_range"),  # 2**31
        (one("boolean"), b"\x02", "bad_boolean"),
        (one("double"), b"\x00" * 7, "truncated"),
        (one("float"), b"\x00" * 5, "trailing_bytes"),
        (one(ENUM), b"\x04", "bad_enum_index"),
        (one(ENUM), b"\x01", "bad_enum_index"),
        (one(["null", "long"]), b"\x04", "bad_union_branch"),
        (one(["null", "long"]), b"\x01", "bad_union_branch"),
        (one({"type": "fixed", "name": "F", "size": 4}), b"\x00" * 3, "truncated"),
        (one({"type": "array", "items": "long"}), b"\x04\x02", "truncated"),
        (one({"type": "array", "items": "null"}), b"\xfe\xff\xff\xff\x0f\x00", "too_many_items"),
        (one({"type": "array", "items": "null"}), b"\xff" * 9 + b"\x01\x00\x00", "bad_block_count"),  # -2**63
        (one({"type": "map", "values": "long"}), b"\x02\x02\xff\x02\x00", "bad_utf8"),
        (one(DECIMAL), b"\x04\x27\x10", "decimal_out_of_range"),  # 10000 has five digits
        (one(DECIMAL), b"\x22" + b"\x00" * 17, "decimal_out_of_range"),
    ],
)
def test_fault_codes(schema: dict[str, Any], body: bytes, reason: str) -> None:
    result = Decoder(schema, schema).decode(binary([body]))
    assert (result.reasons, result.bad.tolist(), len(result.batch)) == ([reason], [0], 0)
    assert reason in FAULTS


def test_a_bad_message_leaves_its_neighbours_alone() -> None:
    schema = record(("id", "long"), ("name", ["null", "string"]), ("tags", {"type": "map", "values": "string"}))
    originals = [
        {"id": i, "name": f"n{i}" if i % 2 else None, "tags": {f"k{i}": "v"} if i % 3 else {}} for i in range(60)
    ]
    bodies = [write(schema, original) for original in originals]
    for index in (0, 17, 40, 59):
        bodies[index] = bodies[index][:-1]

    result = Decoder(schema, schema).decode(binary(bodies))

    assert result.bad.tolist() == [0, 17, 40, 59]
    assert set(result.reasons) == {"truncated"}
    assert rows(result.batch) == [original for i, original in enumerate(originals) if i not in (0, 17, 40, 59)]


def test_utf8_is_judged_value_by_value() -> None:
    # Together the two halves of a character are valid; each alone is not.
    result = Decoder(STRING, STRING).decode(binary([b"\x02\xc3", b"\x02\xa9", b"\x04\xc3\xa9"]))
    assert result.reasons == ["bad_utf8", "bad_utf8"]
    assert rows(result.batch) == [{"a": "é"}]


def test_many_chunks_slices_and_nulls() -> None:
    count = 2 * CHUNK_ROWS + 5
    bodies = [write(LONG, {"a": i}) for i in range(count)]
    bodies[CHUNK_ROWS] = b""
    whole: list[bytes | None] = [b"junk", *bodies, None]
    sliced = binary(whole).slice(1)

    result = Decoder(LONG, LONG).decode(sliced)

    assert result.bad.tolist() == [CHUNK_ROWS, count]
    assert result.batch["a"].to_pylist() == [i for i in range(count) if i != CHUNK_ROWS]


def test_nothing_in_nothing_out() -> None:
    for bodies in (binary([]), binary([b"\x02"])):
        result = Decoder(LONG, LONG).decode(bodies)
        assert result.batch.schema == pa.schema([pa.field("a", pa.int64(), nullable=False)])
        assert len(result.batch) == len(result.good) == len(bodies)


def test_sized_blocks_and_several_blocks() -> None:
    schema = one({"type": "array", "items": "long"})
    body = b"\x03\x04\x02\x04" + b"\x02\x06" + b"\x00"  # a block of two (sized, 2 bytes), a block of one
    assert read(body, schema) == {"a": [1, 2, 3]}
    assert rows(Decoder(schema, schema).decode(binary([body, b"\x00", body])).batch) == [
        {"a": [1, 2, 3]},
        {"a": []},
        {"a": [1, 2, 3]},
    ]


def test_the_item_limit_counts_nested_items_and_ends_soon() -> None:
    inner = {"type": "array", "items": {"type": "array", "items": "null"}}
    schema = one(inner)
    hostile = b"\x80\x40" + b"\x80\x40\x00" * 4096 + b"\x00"  # 4,096 lists of 4,096 nulls in 12 kB
    started = time.process_time()
    result = Decoder(schema, schema).decode(binary([hostile]))
    assert result.reasons == ["too_many_items"]
    assert time.process_time() - started < 2

    at_limit = write(one({"type": "array", "items": "boolean"}), {"a": [True] * MAX_ITEMS})
    flat = one({"type": "array", "items": "boolean"})
    assert Decoder(flat, flat).decode(binary([at_limit])).reasons == []


def test_a_failed_message_does_not_prolong_the_loop_over_items() -> None:
    schema = one({"type": "map", "values": "string"})
    claims = b"\xa0\x9c\x01"  # 10,000 entries, and none follows
    started = time.process_time()
    assert Decoder(schema, schema).decode(binary([claims, b"\x00"])).reasons == ["truncated"]
    assert time.process_time() - started < 0.3, "10,000 turns take about a second"


@pytest.mark.parametrize(
    ("writer", "reader", "value"),
    [
        (one("int"), one("long"), 7),
        (one("int"), one("float"), 7),
        (one("long"), one("double"), -7),
        (one("float"), one("double"), 0.5),
        (one("string"), one("bytes"), "é"),
        (one("bytes"), one("string"), b"abc"),
        (one("string"), one(["null", "string"]), "x"),
        (one(["null", "string"]), one("string"), "x"),
        (one(["string", "null"]), one(["null", "string"]), None),
        (one(["int", "null"]), one(["null", "double"]), 5),
        (one(["int", "string", "null"]), one(["null", "string"]), "y"),
        (one(ENUM), one({**ENUM, "symbols": ["Z", "Y", "X"]}), "Y"),
        (one(ENUM), one({**ENUM, "symbols": ["Z", "Y"], "default": "Z"}), "X"),
        (record(("a", "int"), ("gone", ["null", {"type": "map", "values": "long"}])), one("int"), 3),
    ],
)
def test_resolution(writer: dict[str, Any], reader: dict[str, Any], value: Any) -> None:
    body = write(writer, {"a": value, "gone": {"k": 1}} if len(writer["fields"]) > 1 else {"a": value})
    expected = read(body, writer, reader)
    assert rows(Decoder(writer, reader).decode(binary([body, body])).batch) == [expected, expected]


def test_values_the_reader_has_no_place_for_are_faults_of_their_message_only() -> None:
    optional, required = one(["null", "string"]), one("string")
    bodies = [write(optional, {"a": value}) for value in ("x", None, "y")]
    result = Decoder(optional, required).decode(binary(bodies))
    assert (result.reasons, result.bad.tolist()) == (["unresolvable_union_branch"], [1])

    narrower = one({**ENUM, "symbols": ["X"]})
    result = Decoder(one(ENUM), narrower).decode(binary([b"\x00", b"\x02"]))
    assert (result.reasons, result.bad.tolist()) == (["unknown_enum_symbol"], [1])


def test_aliases_rename_fields_and_records() -> None:
    writer = record(("old", "long"), name="Old")
    reader = record(("new", "long"), name="New")
    reader["fields"][0]["aliases"] = ["old"]
    reader["aliases"] = ["Old"]
    assert rows(Decoder(writer, reader).decode(binary([b"\x02"])).batch) == [{"new": 1}]


@pytest.mark.parametrize(
    ("writer", "reader", "message"),
    [
        (one("string"), one("long"), "a writer's string cannot be read as long at 'a'"),
        (one("long"), record(("a", "long"), ("b", "long")), "'b' has no default"),
        (one("long"), record(("a", "long"), name="Other"), "record R cannot be read as record Other"),
        (one("long"), one(["null", "long", "string"]), "does not fit one column"),
        (
            one({"type": "long", "logicalType": "timestamp-millis"}),
            one({"type": "long", "logicalType": "timestamp-micros"}),
            "Avro does not convert units",
        ),
    ],
)
def test_pairs_that_do_not_resolve_are_refused_up_front(writer: Any, reader: Any, message: str) -> None:
    with pytest.raises(AvroSchemaError, match=message):
        Decoder(writer, reader)
