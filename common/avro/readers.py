"""Readers: one per node of the schema, each turns the next value of every message into an Arrow array.

`read(cursor)` gives one value per cursor row, in row order; what it gives for a faulty row is unspecified but of the
right type (the row is dropped at the end). `skip(cursor)` steps over the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.avro.cursor import Cursor
from common.avro.utf8 import invalid_utf8

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1
_DECIMAL_BYTES = 16


class Reader(Protocol):
    def read(self, cursor: Cursor) -> pa.Array: ...

    def skip(self, cursor: Cursor) -> None: ...


@dataclass(frozen=True)
class NullReader:
    """`null`: takes no bytes."""

    type: pa.DataType

    def read(self, cursor: Cursor) -> pa.Array:
        return pa.nulls(len(cursor), self.type)

    def skip(self, cursor: Cursor) -> None:
        pass


@dataclass(frozen=True)
class ConstantReader:
    """A field the writer does not have: the reader's default for every row."""

    value: Any
    type: pa.DataType

    def read(self, cursor: Cursor) -> pa.Array:
        return pa.repeat(pa.scalar(self.value, self.type), len(cursor))

    def skip(self, cursor: Cursor) -> None:
        pass


class BooleanReader:
    def read(self, cursor: Cursor) -> pa.Array:
        values = cursor.byte()
        if (bad := values > 1).any():
            cursor.fail(bad, "bad_boolean")
        return pa.array(values == 1)

    def skip(self, cursor: Cursor) -> None:
        self.read(cursor)


@dataclass(frozen=True)
class IntegerReader:
    """`int` and `long`, plain, logical (dates, times, timestamps) or promoted to float or double."""

    type: pa.DataType
    is_int: bool

    def read(self, cursor: Cursor) -> pa.Array:
        values = cursor.varint()
        if self.is_int and len(values) and (values.max() > _INT_MAX or values.min() < _INT_MIN):
            cursor.fail((values > _INT_MAX) | (values < _INT_MIN), "int_out_of_range")
        if pa.types.is_floating(self.type):
            return pa.array(values.astype(self.type.to_pandas_dtype()))
        if self.type.bit_width == 32:
            values = values.astype(np.int32)
        return pa.Array.from_buffers(self.type, len(values), [None, pa.py_buffer(values)])

    def skip(self, cursor: Cursor) -> None:
        cursor.varint()


@dataclass(frozen=True)
class FloatReader:
    """`float` (4 bytes) or `double` (8), as the type asked for."""

    width: int
    type: pa.DataType

    def read(self, cursor: Cursor) -> pa.Array:
        words = cursor.word(self.width)
        values: npt.NDArray[Any]
        values = words.astype(np.uint32).view(np.float32) if self.width == 4 else words.view(np.float64)
        return pa.array(values.astype(self.type.to_pandas_dtype(), copy=False))

    def skip(self, cursor: Cursor) -> None:
        cursor.advance(self.width)


class BytesReader:
    def read(self, cursor: Cursor) -> pa.Array:
        return cursor.gather(*cursor.span())

    def skip(self, cursor: Cursor) -> None:
        cursor.span()


class StringReader:
    def read(self, cursor: Cursor) -> pa.Array:
        values = cursor.gather(*cursor.span())
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            bad = invalid_utf8(values)
            cursor.fail(bad, "bad_utf8")
            return pc.if_else(pa.array(bad), b"", values).cast(pa.string())

    def skip(self, cursor: Cursor) -> None:
        cursor.span()


@dataclass(frozen=True)
class FixedReader:
    size: int

    def read(self, cursor: Cursor) -> pa.Array:
        start = cursor.pos
        cursor.advance(self.size)
        # A truncated value would reach past the buffer; its row is dropped, so any bytes will do.
        index = np.minimum(start[:, None] + np.arange(self.size), len(cursor.data) - 1)
        values = pa.py_buffer(cursor.data.take(index))
        return pa.Array.from_buffers(pa.binary(self.size), len(start), [None, values])

    def skip(self, cursor: Cursor) -> None:
        cursor.advance(self.size)


@dataclass(frozen=True)
class DecimalReader:
    """A big-endian two's complement number, in `bytes` (size None) or `fixed`, as decimal128."""

    type: pa.DataType
    size: int | None

    def read(self, cursor: Cursor) -> pa.Array:
        if self.size is None:
            start, end = cursor.span()
        else:
            start = cursor.pos
            cursor.advance(self.size)
            end = cursor.pos
        ordinal = np.arange(_DECIMAL_BYTES)
        digits = cursor.data.take(np.maximum(end[:, None] - 1 - ordinal, 0))
        negative = (cursor.data.take(start) >= 0x80) & (end > start)
        sign = np.where(negative, 0xFF, 0).astype(np.uint8)[:, None]
        limbs = np.where(ordinal < (end - start)[:, None], digits, sign).astype(np.uint8).view("<u8")
        bad = self._too_large(limbs) | (end - start > _DECIMAL_BYTES)
        if bad.any():
            cursor.fail(bad, "decimal_out_of_range")
            limbs = np.where(bad[:, None], np.uint64(0), limbs)
        return pa.Array.from_buffers(self.type, len(start), [None, pa.py_buffer(np.ascontiguousarray(limbs))])

    def skip(self, cursor: Cursor) -> None:
        if self.size is None:
            cursor.span()
        else:
            cursor.advance(self.size)

    def _too_large(self, limbs: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """|value| >= 10**precision, on (low, high) 64-bit limbs."""
        low, high = limbs[:, 0], limbs[:, 1]
        negative = high >> np.uint64(63) == 1
        size_low = np.where(negative, ~low + np.uint64(1), low)
        size_high = np.where(negative, ~high + (low == 0).astype(np.uint64), high)
        bound_high, bound_low = divmod(10**self.type.precision, 2**64)
        at_bound = (size_high == np.uint64(bound_high)) & (size_low >= np.uint64(bound_low))
        too_large: npt.NDArray[np.bool_] = (size_high > np.uint64(bound_high)) | at_bound
        return too_large


@dataclass(frozen=True)
class EnumReader:
    """`symbols[i]` is what the reader calls the writer's symbol i; None if it knows none."""

    symbols: tuple[str | None, ...]
    dictionary: pa.Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dictionary", pa.array(self.symbols, pa.string()))

    def read(self, cursor: Cursor) -> pa.Array:
        index = _index(cursor, len(self.symbols), "bad_enum_index")
        values = self.dictionary.take(pa.array(index))
        if values.null_count:
            cursor.fail(values.is_null().to_numpy(zero_copy_only=False), "unknown_enum_symbol")
            values = values.fill_null("")
        return values

    def skip(self, cursor: Cursor) -> None:
        _index(cursor, len(self.symbols), "bad_enum_index")


@dataclass(frozen=True)
class RecordReader:
    """Reads `steps` in the writer's order; column i of the result is the step whose `target` is i (None: skipped)."""

    steps: tuple[tuple[Reader, int | None], ...]
    fields: tuple[pa.Field, ...]

    def read(self, cursor: Cursor) -> pa.Array:
        return pa.StructArray.from_arrays(self.read_columns(cursor), fields=list(self.fields))

    def read_columns(self, cursor: Cursor) -> list[pa.Array]:
        columns: list[pa.Array] = [None] * len(self.fields)
        for reader, target in self.steps:
            if target is None:
                reader.skip(cursor)
            else:
                columns[target] = reader.read(cursor)
        return columns

    def skip(self, cursor: Cursor) -> None:
        for reader, _ in self.steps:
            reader.skip(cursor)


@dataclass(frozen=True)
class UnionReader:
    """A branch number, then that branch. `branches[i]` is None where the reader cannot take the writer's branch."""

    branches: tuple[Reader | None, ...]
    type: pa.DataType

    def read(self, cursor: Cursor) -> pa.Array:
        branch = self._branch(cursor)
        parts: list[pa.Array] = []
        # Where in the concatenated parts the value of each row is; -1 stays null.
        source = np.full(len(cursor), -1, np.int64)
        taken = 0
        for number, reader in enumerate(self.branches):
            if reader is None or isinstance(reader, NullReader):
                continue
            index = np.flatnonzero(branch == number)
            if len(index) == 0:
                continue
            if len(index) == len(cursor):
                return reader.read(cursor)
            part = cursor.subset(index)
            parts.append(reader.read(part))
            cursor.rejoin(index, part)
            source[index] = np.arange(taken, taken + len(index))
            taken += len(index)
        if not parts:
            return pa.nulls(len(cursor), self.type)
        return pa.concat_arrays(parts).take(pa.array(source, mask=source < 0))

    def skip(self, cursor: Cursor) -> None:
        branch = self._branch(cursor)
        for number, reader in enumerate(self.branches):
            if reader is not None:
                index = np.flatnonzero(branch == number)
                part = cursor.subset(index)
                reader.skip(part)
                cursor.rejoin(index, part)

    def _branch(self, cursor: Cursor) -> npt.NDArray[np.int64]:
        branch = _index(cursor, len(self.branches), "bad_union_branch")
        for number, reader in enumerate(self.branches):
            if reader is None and (unresolvable := branch == number).any():
                cursor.fail(unresolvable, "unresolvable_union_branch")
        return branch


def _index(cursor: Cursor, count: int, fault: str) -> npt.NDArray[np.int64]:
    """A varint in [0, count); 0 where it fails."""
    index = cursor.varint()
    bad = index.view(np.uint64) >= np.uint64(count)
    if bad.any():
        cursor.fail(bad, fault)
        index = np.where(bad, 0, index)
    return index
