"""A recorded log as an unbounded source: what ReadFromKafka does, without Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from tests.pipelines.oracle import GRACE_MS


class ReplayLog(beam.PTransform[PBegin, PCollection[pa.RecordBatch]]):
    """One RAW batch per partition, handed out `slice_rows` rows at a time; idle at the end."""

    def __init__(self, partitions: list[pa.RecordBatch], slice_rows: int) -> None:
        super().__init__()
        self._partitions, self._slice_rows = partitions, slice_rows

    def expand(self, begin: PBegin) -> Any:
        numbers = begin | "partitions" >> beam.Create(range(len(self._partitions)))
        return numbers | beam.ParDo(_Replay(self._partitions, self._slice_rows)).with_output_types(pa.RecordBatch)


class _Replay(beam.DoFn, RestrictionProvider):
    def __init__(self, partitions: list[pa.RecordBatch], slice_rows: int) -> None:
        self._partitions, self._slice_rows = partitions, slice_rows

    def initial_restriction(self, _partition: int) -> OffsetRange:
        return OffsetRange(0, 2**62)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, _partition: int, restriction: OffsetRange) -> int:
        return int(restriction.size())

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        partition: int,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[TimestampedValue]:
        rows = self._partitions[partition].slice(tracker.current_restriction().start, self._slice_rows)
        if rows.num_rows == 0:
            tracker.defer_remainder(Duration(0.2))
        elif tracker.try_claim(rows.column("offset")[-1].as_py()):
            before = watermark.current_watermark()
            yield TimestampedValue(rows, MIN_TIMESTAMP if before is None else before)
            newest_ms = max(rows.column("kafka_ts_ms").to_pylist())
            after = Timestamp(micros=(newest_ms - GRACE_MS) * 1000)
            watermark.set_watermark(after if before is None else max(before, after))
            tracker.defer_remainder()
