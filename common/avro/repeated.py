"""Readers of Avro arrays and maps: blocks of items, read ordinal by ordinal for all messages that still have items.

The first items of all messages are read in one step, then the second items, and so on with ever fewer messages; a
permutation then puts them into row order. The cost is one step per ordinal, so collections should be short (event
properties are); `MAX_ITEMS` bounds what a hostile message can ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from common.avro.cursor import I64, MAX_ITEMS, Cursor
from common.avro.readers import Reader


@dataclass(frozen=True)
class ArrayReader:
    items: Reader
    type: pa.ListType

    def read(self, cursor: Cursor) -> pa.Array:
        offsets, (items,) = _read_items(cursor, (self.items,), (self.type.value_type,))
        return pa.ListArray.from_arrays(offsets, items, type=self.type)

    def skip(self, cursor: Cursor) -> None:
        _skip_items(cursor, (self.items,))


@dataclass(frozen=True)
class MapReader:
    """A map keeps its entries in the writer's order; a repeated key stays repeated, as in Arrow."""

    keys: Reader
    values: Reader
    type: pa.MapType

    def read(self, cursor: Cursor) -> pa.Array:
        types = (self.type.key_type, self.type.item_type)
        offsets, (keys, values) = _read_items(cursor, (self.keys, self.values), types)
        return pa.MapArray.from_arrays(offsets, keys, values, type=self.type)

    def skip(self, cursor: Cursor) -> None:
        _skip_items(cursor, (self.keys, self.values))


def _read_items(
    cursor: Cursor, readers: Sequence[Reader], types: Sequence[pa.DataType]
) -> tuple[pa.Array, list[pa.Array]]:
    """Offsets int32[n + 1] and, per reader, the items of all rows in row order."""
    parts: list[list[pa.Array]] = [[] for _ in readers]
    rows: list[I64] = []
    ordinals: list[I64] = []
    seen = np.zeros(len(cursor), np.int64)
    for index, part in _turns(cursor):
        for reader, read in zip(readers, parts, strict=True):
            read.append(reader.read(part))
        rows.append(index)
        ordinals.append(seen[index])
        seen[index] += 1
    offsets = np.zeros(len(cursor) + 1, np.int64)
    np.cumsum(seen, out=offsets[1:])
    arrow_offsets = pa.array(offsets.astype(np.int32))
    if not rows:
        return arrow_offsets, [pa.array([], type_) for type_ in types]
    place = offsets[np.concatenate(rows)] + np.concatenate(ordinals)
    order = np.empty_like(place)
    order[place] = np.arange(len(place))
    return arrow_offsets, [pa.concat_arrays(read).take(pa.array(order)) for read in parts]


def _skip_items(cursor: Cursor, readers: Sequence[Reader]) -> None:
    for _, part in _turns(cursor):
        for reader in readers:
            reader.skip(part)


def _turns(cursor: Cursor) -> Iterator[tuple[I64, Cursor]]:
    """Yields (row index, sub-cursor) once per ordinal; the caller reads exactly one item from each sub-cursor."""
    open_rows = np.arange(len(cursor))
    while len(open_rows):
        block = cursor.subset(open_rows)
        left = _block_count(block)
        cursor.rejoin(open_rows, block)
        open_rows, left = open_rows[left > 0], left[left > 0]
        busy = open_rows
        while len(busy):
            part = cursor.subset(busy)
            yield busy, part
            cursor.rejoin(busy, part)
            left -= 1
            more = (left > 0) & part.healthy()
            busy, left = busy[more], left[more]
        open_rows = open_rows[cursor.subset(open_rows).healthy()]


def _block_count(block: Cursor) -> I64:
    """The number of items of each row's next block, int64[n]; 0 ends the collection (or the row has failed)."""
    count = block.varint()
    sized = np.flatnonzero(count < 0)
    if len(sized):  # a negative count is followed by the block's size in bytes, of use only for skipping
        part = block.subset(sized)
        part.varint()
        block.rejoin(sized, part)
        count[sized] = -count[sized]
        if (bad := count < 0).any():  # -(-2**63)
            block.fail(bad, "bad_block_count")
    asked = block.ledger.items[block.rows] + np.clip(count, 0, MAX_ITEMS + 1)
    if (bad := asked > MAX_ITEMS).any():
        block.fail(bad, "too_many_items")
    block.ledger.items[block.rows] = asked
    return np.where(block.healthy(), count, 0)
