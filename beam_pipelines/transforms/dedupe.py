"""`Dedupe`: one row per event id within the horizon of lateness."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, RuntimeTimer, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.transforms.batch_state import BatchState, Cell
from beam_pipelines.transforms.lateness import behind_ms
from beam_pipelines.transforms.outputs import count
from common.domain import Domain
from common.open_tiles import next_firing_ms
from common.records import millis

SEEN_SCHEMA = pa.schema([("id", pa.string()), ("time_ms", pa.int64())])


class Dedupe(beam.DoFn):
    """(bucket, batch) -> the rows of the batch whose id the bucket has not seen, in order.

    Of one batch the copy with the least (partition, offset) stays, else the one that came first. An id is forgotten
    once the watermark is `allowed_lateness_ms` past its event time: a copy that comes later is dropped as too late
    before it gets here, as long as it carries the same event time. State: 50 bytes per id of the horizon.
    """

    SEEN = ReadModifyWriteStateSpec("seen", RecordBatchCoder())
    FORGET = TimerSpec("forget", TimeDomain.WATERMARK)

    def __init__(self, domain: Domain) -> None:
        self._event = domain.event
        self._horizon_ms = domain.lateness.allowed_lateness_ms

    def setup(self) -> None:
        self._state = BatchState("dedupe/1", SEEN_SCHEMA)

    def start_bundle(self) -> None:
        self._seen: dict[int, pa.RecordBatch] = {}  # by bucket, of this bundle

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        cell: Cell = beam.DoFn.StateParam(SEEN),
        timer: RuntimeTimer = beam.DoFn.TimerParam(FORGET),
    ) -> Iterator[pa.RecordBatch]:
        bucket, rows = keyed
        seen = self._load(bucket, cell)
        fresh = first_occurrences(rows, self._event.id, seen.column("id"))
        count("duplicates", rows.num_rows - fresh.num_rows)
        if not fresh.num_rows:
            return
        count("silver", fresh.num_rows)
        count("late", int((behind_ms(fresh, self._event.time) > 0).sum()))
        times_ms = pa.array(millis(fresh.column(self._event.time)))
        arrived = pa.record_batch([fresh.column(self._event.id), times_ms], schema=SEEN_SCHEMA)
        seen = pa.concat_batches([seen, arrived])
        self._store(bucket, cell, seen)
        timer.set(_timestamp(int(millis(seen.column("time_ms")).min()) + self._horizon_ms + 1))
        yield fresh

    @on_timer(FORGET)
    def forget(
        self,
        bucket: int = beam.DoFn.KeyParam,
        fired: Timestamp = beam.DoFn.TimestampParam,
        cell: Cell = beam.DoFn.StateParam(SEEN),
        timer: RuntimeTimer = beam.DoFn.TimerParam(FORGET),
    ) -> None:
        fired_ms = fired.micros // 1000
        seen = self._load(bucket, cell)
        kept = seen.filter(pc.greater_equal(seen.column("time_ms"), fired_ms - self._horizon_ms))
        self._store(bucket, cell, kept)
        if kept.num_rows:
            due_ms = millis(kept.column("time_ms")) + self._horizon_ms + 1
            timer.set(_timestamp(next_firing_ms(fired_ms, due_ms)))

    def _load(self, bucket: int, cell: Cell) -> pa.RecordBatch:
        if bucket not in self._seen:
            self._seen[bucket] = self._state.load(cell)
        return self._seen[bucket]

    def _store(self, bucket: int, cell: Cell, seen: pa.RecordBatch) -> None:
        self._seen[bucket] = seen
        self._state.store(cell, seen)


def first_occurrences(rows: pa.RecordBatch, id_column: str, seen: pa.StringArray) -> pa.RecordBatch:
    """The rows whose id is not in `seen`, one per id: the one with the least (partition, offset). Order is kept."""
    fresh = rows
    if len(seen):
        known = pc.is_in(rows.column(id_column), value_set=seen)
        if known.true_count:
            fresh = rows.filter(pc.invert(known))
    encoded = fresh.column(id_column).dictionary_encode()
    if len(encoded.dictionary) == fresh.num_rows:
        return fresh
    order = np.lexsort((fresh.column("_offset").to_numpy(), fresh.column("_partition").to_numpy()))
    codes: npt.NDArray[np.int32] = encoded.indices.to_numpy()
    _, first = np.unique(codes[order], return_index=True)
    return fresh.take(pa.array(np.sort(order[first])))


def _timestamp(time_ms: int) -> Timestamp:
    return Timestamp(micros=time_ms * 1000)
