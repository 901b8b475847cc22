"""Tiles: partial aggregates of a feature view per entity and span of event time.

A tile batch has the columns: entity key, `tile_ms` (start), the partial columns of each aggregate, `events` and
`version_ms`. Merging is associative and commutative (for floating sums up to rounding), so tiles of any split of the
rows merge into the tiles of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.domain import Aggregate, FeatureView
from common.records import millis, partition_columns

TILE = "tile_ms"
EVENTS = "events"
VERSION = "version_ms"

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ZERO_IF_EMPTY = pc.ScalarAggregateOptions(min_count=0)

# Panes in the order in which they supersede each other at equal `events`.
EARLY, ON_TIME, LATE = "early", "on_time", "late"


def tile_schema(view: FeatureView) -> pa.Schema:
    """Columns of a view's tile batches."""
    partials = [(name, dtype) for aggregate in view.aggregates for name, _, dtype in _partials(aggregate)]
    key, counted = (view.key, view.key_type), (EVENTS, pa.int64())
    return pa.schema([key, (TILE, pa.int64()), *partials, counted, (VERSION, pa.int64())])


def aggregate_rows(view: FeatureView, rows: pa.RecordBatch, time_column: str) -> pa.RecordBatch:
    """Silver rows -> one tile row per entity and tile. Rows without an entity take no part."""
    rows = rows.filter(rows.column(view.key).is_valid()) if rows.column(view.key).null_count else rows
    times_ms = millis(rows.column(time_column))
    columns = {
        view.key: rows.column(view.key),
        TILE: pa.array(times_ms - times_ms % view.tile_ms),
        EVENTS: pa.repeat(1, rows.num_rows),
        VERSION: rows.column("_kafka_ts_ms"),
    }
    chosen: dict[tuple[tuple[str, str], ...], pa.BooleanArray | None] = {}
    for aggregate in view.aggregates:
        where = tuple(sorted(aggregate.where.items()))
        if where not in chosen:
            chosen[where] = _mask(rows, aggregate.where)
        columns.update(_contributions(aggregate, rows, chosen[where]))
    return _group(view, pa.table(columns))


def merge_tiles(view: FeatureView, tiles: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Tile batches -> one batch with one row per entity and tile, in order of first occurrence.

    Boolean columns beside the tile schema are flags: true if they are in any of the merged rows.
    """
    return _group(view, pa.Table.from_batches(tiles))


def gold_rows(view: FeatureView, tiles: pa.RecordBatch, pane: str, created_us: int) -> pa.RecordBatch:
    """Tile batch -> rows of gold/<view>."""
    count = tiles.num_rows
    start_ms = millis(tiles.column(TILE))
    date, _ = partition_columns(start_ms)
    columns = {
        view.key: tiles.column(view.key),
        "event_timestamp": pa.array((start_ms + view.tile_ms) * 1000).cast(_TIMESTAMP),
        "tile_start": pa.array(start_ms * 1000).cast(_TIMESTAMP),
        **{aggregate.name: _feature(aggregate, tiles) for aggregate in view.aggregates},
        "pane": pa.repeat(pane, count),
        "version_ms": tiles.column(VERSION),
        "events": tiles.column(EVENTS),
        "created_timestamp": pa.repeat(created_us, count).cast(_TIMESTAMP),
        "feature_date": date,
        "feature_type": pa.repeat(view.name, count),
    }
    schema = view.gold_schema()
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _partials(aggregate: Aggregate) -> Iterator[tuple[str, str, pa.DataType]]:
    """(column, merging function, type) of what an aggregate keeps in a tile."""
    if aggregate.op == "mean":
        yield f"{aggregate.name}.sum", "sum", pa.float64()
        yield f"{aggregate.name}.count", "sum", pa.int64()
    else:
        function = "sum" if aggregate.op == "count" else aggregate.op
        yield aggregate.name, function, aggregate.type


def _mask(rows: pa.RecordBatch, where: Mapping[str, str]) -> pa.BooleanArray | None:
    mask = None
    for name, value in where.items():
        matches = pc.fill_null(pc.equal(rows.column(name), value), False)
        mask = matches if mask is None else pc.and_(mask, matches)
    return mask


def _contributions(aggregate: Aggregate, rows: pa.RecordBatch, mask: pa.BooleanArray | None) -> dict[str, pa.Array]:
    """What each row adds to the aggregate's partial columns; null where `where` does not choose it."""
    if aggregate.column is None:
        ones = pa.repeat(1, rows.num_rows) if mask is None else mask.cast(pa.int64())
        return {aggregate.name: ones}
    values = rows.column(aggregate.column)
    if mask is not None:
        values = pc.if_else(mask, values, pa.scalar(None, values.type))
    if aggregate.op == "mean":
        return {
            f"{aggregate.name}.sum": values.cast(pa.float64()),
            f"{aggregate.name}.count": values.is_valid().cast(pa.int64()),
        }
    return {aggregate.name: values.cast(aggregate.type)}


def _group(view: FeatureView, table: pa.Table) -> pa.RecordBatch:
    functions = {name: function for aggregate in view.aggregates for name, function, _ in _partials(aggregate)}
    functions |= {EVENTS: "sum", VERSION: "max"}
    flags = [name for name in table.column_names if pa.types.is_boolean(table.schema.field(name).type)]
    plan = [
        *((name, function, _ZERO_IF_EMPTY if function == "sum" else None) for name, function in functions.items()),
        *((name, "any", None) for name in flags),
    ]
    grouped = table.group_by([view.key, TILE], use_threads=False).aggregate(plan)
    schema = tile_schema(view)
    for name in flags:
        schema = schema.append(pa.field(name, pa.bool_()))
    names = {name: f"{name}_{function}" for name, function, _ in plan}
    columns = [grouped[names.get(name, name)].combine_chunks() for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _feature(aggregate: Aggregate, tiles: pa.RecordBatch) -> pa.Array:
    if aggregate.op != "mean":
        return tiles.column(aggregate.name)
    sums, counts = (tiles.column(f"{aggregate.name}.{part}").to_numpy() for part in ("sum", "count"))
    return pa.array(sums / np.maximum(counts, 1), mask=counts == 0)
