"""`PartialTiles` and `MergeTiles`: silver rows to panes of the feature views.

All views go through one keyed step: a key is `<view>/<bucket>`. One shuffle and one stage cost less than one per view,
and Beam's in-process runner loses timers of stateful steps that share an input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, RuntimeTimer, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.transforms.batch_state import BatchState, Cell
from beam_pipelines.transforms.bucket import FLUSH_ROWS, split_by_bucket
from beam_pipelines.transforms.outputs import count
from common.domain import Domain, FeatureView
from common.open_tiles import OpenTiles, Panes
from common.tiles import EARLY, aggregate_rows, gold_rows


class PartialTiles(beam.DoFn):
    """Silver batches of a bundle -> (view/bucket, tile batch): far fewer rows to shuffle than came in."""

    def __init__(self, domain: Domain, buckets: int) -> None:
        self._time, self._views, self._buckets = domain.event.time, domain.features, buckets
        self._used = sorted({self._time, "_kafka_ts_ms"}.union(*(_columns(view) for view in domain.features)))

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
            rows = pa.concat_batches(self._batches)
            for view in self._views:
                tiles = aggregate_rows(view, rows, self._time)
                for bucket, part in split_by_bucket(tiles, view.key, self._buckets):
                    yield _in_global_window((f"{view.name}/{bucket}", part))
        self.start_bundle()


class MergeTiles(beam.DoFn):
    """(view/bucket, tile batch) -> batches of gold rows on the view's output: one pane per tile that changed.

    early    a bundle changed a tile that is still open (only if the source is unbounded)
    on_time  the watermark passed the tile's end
    late     a bundle changed a tile after that; a tile lives until its end plus the allowed lateness

    Panes accumulate: each holds all events of its tile so far. State is one batch per key. `now_ns` gives the
    `created_timestamp` of panes.
    """

    TILES = ReadModifyWriteStateSpec("tiles", RecordBatchCoder())
    CLOSE = TimerSpec("close", TimeDomain.WATERMARK)

    def __init__(self, domain: Domain, bounded: bool, now_ns: Callable[[], int] = time.time_ns) -> None:
        allowed_ms = domain.lateness.allowed_lateness_ms
        self._views = {view.name: OpenTiles(view, allowed_ms) for view in domain.features}
        self._bounded, self._now_ns = bounded, now_ns

    def setup(self) -> None:
        self._states = {
            name: BatchState(f"tiles/1 of {view.view.tile_ms} ms", view.schema) for name, view in self._views.items()
        }

    def start_bundle(self) -> None:
        self._tiles: dict[str, pa.RecordBatch] = {}  # by key, of this bundle

    def process(
        self,
        keyed: tuple[str, pa.RecordBatch],
        cell: Cell = beam.DoFn.StateParam(TILES),
        timer: RuntimeTimer = beam.DoFn.TimerParam(CLOSE),
    ) -> None:
        key, partials = keyed
        view = self._views[_view_name(key)]
        tiles = view.merge(self._load(key, cell), partials)
        self._store(key, cell, tiles)
        ends_ms = view.open_ends_ms(tiles)
        if len(ends_ms):
            # A bounded source's watermark goes straight from the beginning to the end of time: one firing is enough.
            timer.set(_timestamp(int(ends_ms.max() if self._bounded else ends_ms.min())))

    @on_timer(CLOSE)
    def close(
        self,
        key: str = beam.DoFn.KeyParam,
        fired: Timestamp = beam.DoFn.TimestampParam,
        cell: Cell = beam.DoFn.StateParam(TILES),
        timer: RuntimeTimer = beam.DoFn.TimerParam(CLOSE),
    ) -> Iterator[TaggedOutput]:
        closing = self._views[_view_name(key)].close(self._load(key, cell), fired.micros // 1000)
        self._store(key, cell, closing.tiles)
        if closing.next_ms is not None:
            timer.set(_timestamp(closing.next_ms))
        yield from self._gold(key, closing.panes)

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        for key, tiles in self._tiles.items():
            panes = self._views[_view_name(key)].unsettled(tiles)
            if self._bounded:
                panes.pop(EARLY, None)
            for output in self._gold(key, panes):
                yield TaggedOutput(output.tag, _in_global_window(output.value))

    def _load(self, key: str, cell: Cell) -> pa.RecordBatch:
        if key not in self._tiles:
            name = _view_name(key)
            # What an earlier bundle changed had its panes at that bundle's end.
            self._tiles[key] = self._views[name].settled(self._states[name].load(cell))
        return self._tiles[key]

    def _store(self, key: str, cell: Cell, tiles: pa.RecordBatch) -> None:
        self._tiles[key] = tiles
        self._states[_view_name(key)].store(cell, tiles)

    def _gold(self, key: str, panes: Panes) -> Iterator[TaggedOutput]:
        name = _view_name(key)
        for pane, tiles in panes.items():
            count(f"gold.{name}", tiles.num_rows)
            yield TaggedOutput(name, gold_rows(self._views[name].view, tiles, pane, self._now_ns() // 1000))


def _columns(view: FeatureView) -> set[str]:
    read = {aggregate.column for aggregate in view.aggregates if aggregate.column is not None}
    return read.union([view.key], *(aggregate.where for aggregate in view.aggregates))


def _view_name(key: str) -> str:
    return key.rpartition("/")[0]


def _timestamp(time_ms: int) -> Timestamp:
    return Timestamp(micros=time_ms * 1000)


def _in_global_window(value: object) -> WindowedValue:
    return WindowedValue(value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
