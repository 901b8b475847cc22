"""Avro types as Arrow types: what the decoder gives and the encoder takes."""

from __future__ import annotations

import pyarrow as pa

from common.avro.schema import (
    NULL,
    Array,
    AvroSchemaError,
    AvroType,
    Enum,
    Fixed,
    Logical,
    Map,
    Primitive,
    Record,
    Union,
    describe,
    parse_record,
)

# decimal128 holds 38 digits.
MAX_DECIMAL_PRECISION = 38

_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}

_LOGICAL = {
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "timestamp-millis": pa.timestamp("ms", tz="UTC"),
    "timestamp-micros": pa.timestamp("us", tz="UTC"),
    "timestamp-nanos": pa.timestamp("ns", tz="UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
}


def arrow_schema(avro_schema: object) -> pa.Schema:
    """The Arrow schema of a record schema (as `json.loads` gives it): one column per field, in order.

    Raises:
        AvroSchemaError: not a record, recursive, or a type Arrow cannot hold as one column (unions of several types).
    """
    return pa.schema([arrow_field(field.name, field.type) for field in parse_record(avro_schema).fields])


def arrow_field(name: str, avro_type: AvroType) -> pa.Field:
    """A column of this type; nullable exactly where the Avro type admits null."""
    return pa.field(name, arrow_type(avro_type), nullable=admits_null(avro_type))


def admits_null(avro_type: AvroType) -> bool:
    """Whether null is a legal value of the type."""
    return avro_type == NULL or (isinstance(avro_type, Union) and avro_type.null_branch is not None)


def arrow_type(avro_type: AvroType) -> pa.DataType:
    """The Arrow type that holds values of an Avro type."""
    match avro_type:
        case Primitive(kind=kind, logical=logical):
            return _PRIMITIVES[kind] if logical is None else _logical_type(logical)
        case Fixed(size=size, logical=logical):
            return pa.binary(size) if logical is None else _logical_type(logical)
        case Enum():
            return pa.string()
        case Array(items=items):
            return pa.list_(arrow_field("item", items))
        case Map(values=values):
            return pa.map_(pa.string(), arrow_field("value", values))
        case Record(fields=fields):
            return pa.struct([arrow_field(field.name, field.type) for field in fields])
        case Union():
            return arrow_type(only_value_branch(avro_type))


def only_value_branch(union: Union) -> AvroType:
    """The one type beside null that a union stands for.

    Raises:
        AvroSchemaError: several types beside null: they do not fit one column.
    """
    values = [branch for branch in union.branches if branch != NULL]
    if len(values) > 1:
        raise AvroSchemaError(
            f"a union of {', '.join(map(describe, values))} does not fit one column",
            hint="use a record with one nullable field per type",
        )
    return values[0] if values else NULL


def _logical_type(logical: Logical) -> pa.DataType:
    if logical.name != "decimal":
        return _LOGICAL[logical.name]
    if logical.precision > MAX_DECIMAL_PRECISION:
        raise AvroSchemaError(f"decimal precision {logical.precision} is above {MAX_DECIMAL_PRECISION}")
    return pa.decimal128(logical.precision, logical.scale)
