"""`DropTooLate`: rows that the watermark left too far behind go to the dead letters."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.transforms.outputs import count, dead
from common.domain import Domain
from common.records import millis

STEP = "silver/lateness"
TOO_LATE = "too_late"


class DropTooLate(beam.DoFn):
    """Bronze batch -> rows whose event time is at most `allowed_lateness_ms` behind the watermark of their partition.

    That watermark is a column, a function of the log: stream, batch and backfill drop the same rows. It is never
    behind the pipeline's own watermark, so state of what passes here has not been collected yet.
    """

    def __init__(self, domain: Domain) -> None:
        self._event = domain.event
        self._allowed_ms = domain.lateness.allowed_lateness_ms

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch | TaggedOutput]:
        too_late = behind_ms(rows, self._event.time) > self._allowed_ms
        if not too_late.any():
            yield rows
            return
        failed = rows.filter(pa.array(too_late))
        count("late", failed.num_rows)
        yield dead(STEP, failed, [TOO_LATE] * failed.num_rows, [self._event.time] * failed.num_rows, self._event.id)
        if failed.num_rows < rows.num_rows:
            yield rows.filter(pa.array(~too_late))


def behind_ms(rows: pa.RecordBatch, time_column: str) -> npt.NDArray[np.int64]:
    """How far each row's event time is behind its watermark; above 0 it is late."""
    behind: npt.NDArray[np.int64] = millis(rows.column("_watermark_ms")) - millis(rows.column(time_column))
    return behind
