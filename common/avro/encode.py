"""Arrow record batches to Avro message bodies, column by column: the twin of decode.py, ~1M small events per second.

Every field becomes one or more *pieces*: binary arrays with one element per row, null where the row has nothing at
that place. Arrow's kernel then joins all pieces of a row in C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.avro.arrow_types import only_value_branch
from common.avro.schema import (
    NULL,
    Array,
    AvroSchemaError,
    AvroType,
    Enum,
    Fixed,
    Map,
    Primitive,
    Record,
    Union,
    describe,
    parse_record,
)

_VARINT_BITS = 7
_MAX_VARINT_BYTES = 10
_END_OF_BLOCKS = b"\x00"


class Encoder:
    """Encodes record batches with one schema.

    Raises:
        AvroSchemaError: the schema is unusable, or holds a decimal.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._record = parse_record(schema)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """binary[n] of message bodies. The batch has the schema's columns by name; further columns are ignored.

        Columns have the types that `arrow_schema` gives; a null in a column that is not nullable is an error.

        Raises:
            ValueError: a null or an enum symbol that the schema does not know.
            KeyError: a column is missing.
        """
        pieces: list[pa.Array] = []
        for field in self._record.fields:
            pieces += _pieces(field.type, batch.column(field.name), field.name)
        return _join(pieces, len(batch))


def _join(pieces: list[pa.Array], rows: int) -> pa.BinaryArray:
    """The pieces of each row, one after the other; nulls contribute nothing."""
    if not pieces:
        return pa.repeat(pa.scalar(b"", pa.binary()), rows)
    return pc.binary_join_element_wise(*pieces, b"", null_handling="replace", null_replacement=b"")


def _pieces(avro_type: AvroType, values: pa.Array, path: str, *, nulls_are_absent: bool = False) -> list[pa.Array]:
    """The pieces of one column; with `nulls_are_absent` a null row was dealt with by the union above."""
    if isinstance(avro_type, Union):
        return _union(avro_type, values, path)
    if values.null_count and not nulls_are_absent and avro_type != NULL:
        raise ValueError(f"column '{path}' has nulls where the schema allows none")
    match avro_type:
        case Primitive(kind=kind) if kind == "null":
            return []
        case Primitive(kind=kind) if kind in ("int", "long"):
            integers = values.cast(pa.int32() if values.type.bit_width == 32 else pa.int64()).cast(pa.int64())
            return [varints(integers.fill_null(0).to_numpy(), _nulls(values))]
        case Primitive(kind=kind) if kind in ("float", "double", "boolean"):
            dtype = {"float": "<f4", "double": "<f8", "boolean": "u1"}[kind]
            numbers = values.fill_null(0 if kind != "boolean" else False).to_numpy(zero_copy_only=False)
            return [_fixed_width(numbers.astype(dtype), _nulls(values))]
        case Primitive(kind=kind, logical=None) if kind in ("string", "bytes"):
            lengths = pc.binary_length(values).cast(pa.int64()).fill_null(0).to_numpy()
            return [varints(lengths, _nulls(values)), values.cast(pa.binary())]
        case Fixed(logical=None):
            return [values.cast(pa.binary())]
        case Enum(symbols=symbols):
            index = pc.index_in(values, pa.array(symbols))
            if index.null_count > values.null_count:
                raise ValueError(f"column '{path}' has a symbol that the enum does not know")
            return [varints(index.cast(pa.int64()).fill_null(0).to_numpy(), _nulls(values))]
        case Record(fields=fields):
            children = dict(zip([field.name for field in values.type], values.flatten(), strict=True))
            nested = [
                _pieces(field.type, children[field.name], f"{path}.{field.name}", nulls_are_absent=nulls_are_absent)
                for field in fields
            ]
            return [piece for pieces in nested for piece in pieces]
        case Array(items=items):
            return _blocks(values, _pieces(items, _own(values, values.values), f"{path}[]"))
        case Map(values=value_type):
            keys = _pieces(Primitive("string"), _own(values, values.keys), path)
            return _blocks(values, keys + _pieces(value_type, _own(values, values.items), f"{path}{{}}"))
    raise AvroSchemaError(f"'{path}': a {describe(avro_type)} of this kind cannot be encoded")


def _union(union: Union, values: pa.Array, path: str) -> list[pa.Array]:
    value_type = only_value_branch(union)
    if value_type == NULL or union.null_branch is None:
        return [varints(np.zeros(len(values), np.int64), None), *_pieces(value_type, values, path)]
    is_null = values.is_null().to_numpy(zero_copy_only=False)
    branches = np.where(is_null, union.null_branch, union.branches.index(value_type))
    return [varints(branches, None), *_pieces(value_type, values, path, nulls_are_absent=True)]


def _own(values: pa.Array, items: pa.Array) -> pa.Array:
    """The items of a list or map array without those of rows that a slice left out."""
    first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
    return items.slice(first, last - first)


def _blocks(values: pa.Array, item_pieces: list[pa.Array]) -> list[pa.Array]:
    """A collection as one block of all its items, if it has any, and the end mark."""
    offsets = values.offsets.to_numpy()
    counts = np.diff(offsets).astype(np.int64)
    items = _join(item_pieces, int(offsets[-1] - offsets[0]))
    rows = pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), items)
    return [
        varints(counts, counts == 0),
        pc.binary_join(rows, b""),
        pc.if_else(values.is_null(), pa.scalar(None, pa.binary()), pa.scalar(_END_OF_BLOCKS, pa.binary())),
    ]


def varints(values: npt.NDArray[np.int64], nulls: npt.NDArray[np.bool_] | None) -> pa.BinaryArray:
    """Zig-zag varints, binary[n]; null where `nulls` holds.

    >>> varints(np.array([0, -1, 64]), None).to_pylist()
    [b'\\x00', b'\\x01', b'\\x80\\x01']
    """
    raw = ((values << 1) ^ (values >> 63)).view(np.uint64)
    if len(raw) == 0 or raw.max() < 1 << _VARINT_BITS:  # lengths, branches, small counts
        return _fixed_width(raw.astype(np.uint8), nulls)
    limits = np.uint64(1) << np.arange(_VARINT_BITS, _VARINT_BITS * _MAX_VARINT_BYTES, _VARINT_BITS, dtype=np.uint64)
    width = np.searchsorted(limits, raw, side="right") + 1
    place = np.arange(width.max())
    groups = ((raw[:, None] >> (place * _VARINT_BITS).astype(np.uint64)) & np.uint64(0x7F)).astype(np.uint8)
    groups |= np.where(place < width[:, None] - 1, 0x80, 0).astype(np.uint8)
    offsets = np.zeros(len(raw) + 1, np.int32)
    np.cumsum(width, out=offsets[1:])
    return _binary(offsets, groups[place < width[:, None]], nulls)


def _fixed_width(values: npt.NDArray[Any], nulls: npt.NDArray[np.bool_] | None) -> pa.BinaryArray:
    width = values.dtype.itemsize
    return _binary(np.arange(0, (len(values) + 1) * width, width, dtype=np.int32), np.ascontiguousarray(values), nulls)


def _binary(
    offsets: npt.NDArray[np.int32], data: npt.NDArray[Any], nulls: npt.NDArray[np.bool_] | None
) -> pa.BinaryArray:
    validity = None if nulls is None or not nulls.any() else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _nulls(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    if values.null_count == 0:
        return None
    nulls: npt.NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    return nulls
