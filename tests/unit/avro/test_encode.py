"""Encoder against fastavro."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.avro.decode import Decoder
from common.avro.encode import Encoder
from common.avro.schema import AvroSchemaError
from tests.unit.avro.reference import binary, write
from tests.unit.avro.strategies import Typed, records


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), records(logical=False))
def test_encodes_the_bytes_fastavro_writes(data: st.DataObject, typed: Typed) -> None:
    bodies = [write(typed.schema, record) for record in data.draw(st.lists(typed.values, min_size=1, max_size=6))]
    batch = Decoder(typed.schema, typed.schema).decode(binary(bodies)).batch
    assert Encoder(typed.schema).encode(batch).to_pylist() == bodies
    assert Encoder(typed.schema).encode(batch.slice(1)).to_pylist() == bodies[1:]


def one(type_: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": "a", "type": type_}]}


@pytest.mark.parametrize(
    "value", [0, -1, 63, 64, -65, 2**31, -(2**63), 2**63 - 1, *(1 << bits for bits in range(0, 63, 7))]
)
def test_varints_of_every_width(value: int) -> None:
    batch = pa.RecordBatch.from_pydict({"a": pa.array([value, 1])})
    assert Encoder(one("long")).encode(batch)[0].as_py() == write(one("long"), {"a": value})


def test_what_cannot_be_encoded_is_refused() -> None:
    null = pa.RecordBatch.from_pydict({"a": pa.array([None, "X"])})
    with pytest.raises(ValueError, match="'a' has nulls"):
        Encoder(one("string")).encode(null)
    with pytest.raises(ValueError, match="a symbol that the enum does not know"):
        Encoder(one({"type": "enum", "name": "E", "symbols": ["Y"]})).encode(null.slice(1))
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 4}
    with pytest.raises(AvroSchemaError, match="cannot be encoded"):
        Encoder(one(decimal)).encode(null.slice(1))
    with pytest.raises(KeyError):
        Encoder(one("string")).encode(pa.RecordBatch.from_pydict({"b": ["x"]}))
