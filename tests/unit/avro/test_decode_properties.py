"""Decoder against fastavro on random schemas, values and damage."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.avro.arrow_types import arrow_schema
from common.avro.cursor import FAULTS
from common.avro.decode import Decoder
from tests.unit.avro.reference import binary, read, rows, same, write
from tests.unit.avro.strategies import Typed, records

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.data(), records(logical=True))
def test_decodes_what_fastavro_wrote(data: st.DataObject, typed: Typed) -> None:
    originals = data.draw(st.lists(typed.values, min_size=1, max_size=6))
    bodies = [write(typed.schema, record) for record in originals]

    result = Decoder(typed.schema, typed.schema).decode(binary(bodies))

    result.batch.validate(full=True)
    assert result.batch.schema == arrow_schema(typed.schema)
    assert result.good.tolist() == list(range(len(bodies)))
    assert result.reasons == []
    assert same(rows(result.batch), [read(body, typed.schema) for body in bodies])


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """A body cut short, extended, or with bytes overwritten."""
    hurt = bytearray(body)
    match draw(st.sampled_from(["cut", "extend", "overwrite", "insert"])):
        case "cut":
            del hurt[draw(st.integers(0, len(hurt))) :]
        case "extend":
            hurt += draw(st.binary(min_size=1, max_size=12))
        case "overwrite" if hurt:
            for _ in range(draw(st.integers(1, 3))):
                hurt[draw(st.integers(0, len(hurt) - 1))] = draw(st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xC3, 0xFF]))
        case _:
            at = draw(st.integers(0, len(hurt)))
            hurt[at:at] = draw(st.binary(min_size=1, max_size=12) | st.just(b"\xff" * 11))
    return bytes(hurt)


@QUICK
@given(st.data(), records(logical=False))
def test_damage_gives_an_error_or_what_fastavro_gives(data: st.DataObject, typed: Typed) -> None:
    sound = [write(typed.schema, record) for record in data.draw(st.lists(typed.values, min_size=1, max_size=4))]
    bodies = [data.draw(st.just(body) | damaged(body)) for body in sound for _ in range(3)]

    result = Decoder(typed.schema, typed.schema).decode(binary(bodies))

    result.batch.validate(full=True)
    assert sorted([*result.good, *result.bad]) == list(range(len(bodies)))
    assert len(result.reasons) == len(result.bad)
    assert set(result.reasons) <= set(FAULTS[1:])
    assert {index for index in range(len(bodies)) if bodies[index] in sound} <= set(result.good)
    for index, row in zip(result.good, rows(result.batch), strict=True):
        assert same(row, read(bodies[index], typed.schema))


@QUICK
@given(st.data(), records(logical=True))
def test_resolution_drops_and_fills_as_fastavro_does(data: st.DataObject, writer: Typed) -> None:
    bodies = [write(writer.schema, record) for record in data.draw(st.lists(writer.values, min_size=1, max_size=4))]
    reader = evolved(data, writer.schema)

    result = Decoder(writer.schema, reader).decode(binary(bodies))

    assert same(rows(result.batch), [read(body, writer.schema, reader) for body in bodies])


def evolved(data: st.DataObject, schema: dict[str, Any]) -> dict[str, Any]:
    """A reader schema: fields shuffled, some dropped, some added with defaults, numbers widened."""
    reader = copy.deepcopy(schema)
    fields = [field for field in data.draw(st.permutations(reader["fields"])) if data.draw(st.integers(0, 4))]
    for field in fields:
        if field["type"] in ("int", "long", "float"):
            wider = {"int": ["int", "long", "double"], "long": ["long", "double"], "float": ["double"]}
            field["type"] = data.draw(st.sampled_from(wider[field["type"]]))
        elif isinstance(field["type"], str) and field["type"] not in ("null", "string", "bytes"):
            field["type"] = ["null", field["type"]]
    added = [
        {"name": "added_text", "type": "string", "default": "none"},
        {"name": "added_null", "type": ["null", "long"], "default": None},
        {"name": "added_map", "type": {"type": "map", "values": "int"}, "default": {"a": 1}},
        {"name": "added_list", "type": {"type": "array", "items": "string"}, "default": []},
    ]
    kept = [field for field in added if data.draw(st.booleans())]
    reader["fields"] = fields + kept or added
    return reader
