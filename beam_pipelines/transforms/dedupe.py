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
from beam_pipelines.transforms.batch_state import BundleState, Cell, next_firing_ms
from beam_pipelines.transforms.lateness import behind_ms
from beam_pipelines.transforms.outputs import count
from common.domain import Domain
from common.records import int64_values

SEEN_SCHEMA = pa.schema([("id", pa.string()), ("time_ms", pa.int64())])


class Dedupe(beam.DoFn):  # type: ignore[misc]
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
        self._state = BundleState("dedupe/1", SEEN_SCHEMA)

    def start_bundle(self) -> None:
        self._state.start_bundle()

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        cell: Cell = beam.DoFn.StateParam(SEEN),
        timer: RuntimeTimer = beam.DoFn.TimerParam(FORGET),
    ) -> Iterator[pa.RecordBatch]:
        bucket, rows = keyed
        seen = self._state.load(bucket, cell)
        fresh = first_occurrences(rows, self._event.id, seen.column("id"))
        count("duplicates", rows.num_rows - fresh.num_rows)
        if not fresh.num_rows:
            return
        count("silver", fresh.num_rows)
        count("late", int((behind_ms(fresh, self._event.time) > 0).sum()))
        times_ms = fresh.column(self._event.time).cast(pa.int64())
        seen = pa.concat_batches(
            [seen.replace_schema_metadata(None), pa.record_batch([fresh.column(self._event.id), times_ms], schema=SEEN_SCHEMA)]
        )
        self._state.store(bucket, cell, seen)
        timer.set(_timestamp(int(int64_values(seen.column("time_ms")).min()) + self._horizon_ms + 1))
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
        seen = self._state.load(bucket, cell)
        kept = seen.filter(pc.greater_equal(seen.column("time_ms"), fired_ms - self._horizon_ms))
        self._state.store(bucket, cell, kept)
        if kept.num_rows:
            due_ms = int64_values(kept.column("time_ms")) + self._horizon_ms + 1
            timer.set(_timestamp(next_firing_ms(fired_ms, int(due_ms.min()), int(due_ms.max()))))


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
    order = np.lexsort((int64_values(fresh.column("_offset")), int64_values(fresh.column("_partition"))))
    codes: npt.NDArray[np.int32] = encoded.indices.to_numpy()
    _, first = np.unique(codes[order], return_index=True)
    return fresh.take(pa.array(np.sort(order[first])))


def _timestamp(time_ms: int) -> Timestamp:
    return Timestamp(micros=time_ms * 1000)
