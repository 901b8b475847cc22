"""`PartialTiles` and `MergeTiles`: silver rows to panes of a feature view."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, RuntimeTimer, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.transforms.batch_state import BundleState, Cell, next_firing_ms
from beam_pipelines.transforms.bucket import split_by_bucket
from beam_pipelines.transforms.outputs import count
from common.domain import Domain, FeatureView
from common.records import int64_values
from common.tiles import EARLY, LATE, ON_TIME, TILE, aggregate_rows, gold_rows, merge_tiles, tile_schema

CLOSED = "closed"  # the watermark has passed the tile's end, and its on-time pane is out
CHANGED = "changed"  # in this bundle, since the last pane
FLUSH_ROWS = 500_000

Flags = npt.NDArray[np.bool_]


class PartialTiles(beam.DoFn):  # type: ignore[misc]
    """Silver batches of a bundle -> (bucket of the entity, tile batch): far fewer rows to shuffle than came in."""

    def __init__(self, domain: Domain, view: FeatureView, buckets: int) -> None:
        self._time, self._view, self._buckets = domain.event.time, view, buckets
        used = {view.key, self._time, "_kafka_ts_ms"}
        for aggregate in view.aggregates:
            used |= {*aggregate.where, *([aggregate.column] if aggregate.column else [])}
        self._used = sorted(used)

    def start_bundle(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def process(self, rows: pa.RecordBatch) -> Iterator[WindowedValue]:
        self._batches.append(rows.select(self._used))
        self._rows += rows.num_rows
        if self._rows >= FLUSH_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._flush()

    def _flush(self) -> Iterator[WindowedValue]:
        if self._rows:
            tiles = aggregate_rows(self._view, pa.concat_batches(self._batches), self._time)
            for keyed in split_by_bucket(tiles, self._view.key, self._buckets):
                yield _in_global_window(keyed)
        self.start_bundle()


class MergeTiles(beam.DoFn):  # type: ignore[misc]
    """(bucket, tile batch) -> batches of gold rows: one pane per tile that changed.

    early    a bundle changed a tile that is still open (only if the source is unbounded)
    on_time  the watermark passed the tile's end
    late     a bundle changed a tile after that; a tile lives until its end plus the allowed lateness

    Panes accumulate: each holds all events of its tile so far. State is one batch per bucket. `now_ns` gives the
    `created_timestamp` of panes.
    """

    TILES = ReadModifyWriteStateSpec("tiles", RecordBatchCoder())
    CLOSE = TimerSpec("close", TimeDomain.WATERMARK)

    def __init__(
        self, domain: Domain, view: FeatureView, bounded: bool, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._view = view
        self._allowed_ms = domain.lateness.allowed_lateness_ms
        self._bounded = bounded
        self._now_ns = now_ns

    def setup(self) -> None:
        schema = tile_schema(self._view)
        for flag in (CLOSED, CHANGED):
            schema = schema.append(pa.field(flag, pa.bool_()))
        self._state = BundleState(f"tiles/1 of {self._view.tile_ms} ms", schema)

    def start_bundle(self) -> None:
        self._state.start_bundle()
        self._touched: dict[int, pa.RecordBatch] = {}

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        cell: Cell = beam.DoFn.StateParam(TILES),
        timer: RuntimeTimer = beam.DoFn.TimerParam(CLOSE),
    ) -> None:
        bucket, partials = keyed
        tiles = merge_tiles(self._view, [self._tiles(bucket, cell), _flagged(partials, closed=False, changed=True)])
        self._keep(bucket, tiles, cell)
        open_ends_ms = self._ends_ms(tiles)[~_flag(tiles, CLOSED)]
        if len(open_ends_ms):
            # A bounded source's watermark goes straight from the beginning to the end of time: one firing is enough.
            timer.set(_timestamp(open_ends_ms.max() if self._bounded else open_ends_ms.min()))

    @on_timer(CLOSE)
    def close(
        self,
        bucket: int = beam.DoFn.KeyParam,
        fired: Timestamp = beam.DoFn.TimestampParam,
        cell: Cell = beam.DoFn.StateParam(TILES),
        timer: RuntimeTimer = beam.DoFn.TimerParam(CLOSE),
    ) -> Iterator[pa.RecordBatch]:
        fired_ms = fired.micros // 1000
        tiles = self._tiles(bucket, cell)
        ends_ms, closed, changed = self._ends_ms(tiles), _flag(tiles, CLOSED), _flag(tiles, CHANGED)
        closing = ~closed & (ends_ms <= fired_ms)
        expired = ends_ms + self._allowed_ms <= fired_ms
        yield from self._panes(tiles, closing, ON_TIME)
        # What expires in the bundle that changed it does not live to the bundle's end.
        yield from self._panes(tiles, expired & closed & changed, LATE)
        closed |= closing
        tiles = _flagged(tiles.select(tile_schema(self._view).names), closed, changed & ~closing)
        self._keep(bucket, tiles.filter(pa.array(~expired)), cell)
        if not closed.all():
            open_ends_ms = ends_ms[~closed]
            timer.set(_timestamp(next_firing_ms(fired_ms, open_ends_ms.min(), open_ends_ms.max())))
        elif not expired.all():
            timer.set(_timestamp(ends_ms[~expired].min() + self._allowed_ms))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for tiles in self._touched.values():
            closed, changed = _flag(tiles, CLOSED), _flag(tiles, CHANGED)
            for batch in self._panes(tiles, changed & closed, LATE):
                yield _in_global_window(batch)
            if not self._bounded:
                for batch in self._panes(tiles, changed & ~closed, EARLY):
                    yield _in_global_window(batch)

    def _tiles(self, bucket: int, cell: Cell) -> pa.RecordBatch:
        tiles = self._state.load(bucket, cell)
        if bucket in self._touched:
            return tiles
        # The flags of the bundle that stored them: their panes are out.
        return _flagged(tiles.select(tile_schema(self._view).names), _flag(tiles, CLOSED), changed=False)

    def _keep(self, bucket: int, tiles: pa.RecordBatch, cell: Cell) -> None:
        self._state.store(bucket, cell, tiles)
        self._touched[bucket] = tiles

    def _ends_ms(self, tiles: pa.RecordBatch) -> npt.NDArray[np.int64]:
        return int64_values(tiles.column(TILE)) + self._view.tile_ms

    def _panes(self, tiles: pa.RecordBatch, chosen: Flags, pane: str) -> Iterator[pa.RecordBatch]:
        if chosen.any():
            rows = tiles.filter(pa.array(chosen))
            count(f"gold.{self._view.name}", rows.num_rows)
            yield gold_rows(self._view, rows, pane, self._now_ns() // 1000)


def _flagged(tiles: pa.RecordBatch, closed: Flags | bool, changed: Flags | bool) -> pa.RecordBatch:
    for name, flags in ((CLOSED, closed), (CHANGED, changed)):
        column = pa.repeat(flags, tiles.num_rows) if isinstance(flags, bool) else pa.array(flags)
        tiles = tiles.append_column(name, column)
    return tiles


def _flag(tiles: pa.RecordBatch, name: str) -> Flags:
    flags: Flags = tiles.column(name).to_numpy(zero_copy_only=False)
    return flags


def _timestamp(time_ms: np.int64 | int) -> Timestamp:
    return Timestamp(micros=int(time_ms) * 1000)


def _in_global_window(value: object) -> WindowedValue:
    return WindowedValue(value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
