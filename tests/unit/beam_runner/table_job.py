"""A stream of numbers into a table: what the table must hold is a range. For tests of copies and rollbacks."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.io.lake import WriteTable
from common.lake import Lake, LakePublisher, TableSpec, read
from spark_jobs.beam_runner import SparkRunner
from tests.faults import counting_job

SPEC = TableSpec("numbers", pa.schema([("value", pa.int64()), ("total", pa.int64())]))


class Total(counting_job.RunningSum):
    """(key, value) -> a batch of one row: the value, and the running total of its key in state."""

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(counting_job.RunningSum.SUM)) -> Any:
        now = (total.read() or 0) + pair[1]
        total.write(now)
        yield pa.RecordBatch.from_pydict({"value": [pair[1]], "total": [now]}, schema=SPEC.schema)


def run(checkpoint: str | Path, lake: Lake, available: int, slice_size: int) -> Any:
    """Numbers 0, 4, 8 ... of `available` elements, `slice_size` an epoch; all under one key. Ends when idle."""
    flags = ["--streaming", "--until_idle", "--transport=local", f"--checkpoint={checkpoint}"]
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    _ = (
        pipeline
        | "source" >> beam.Create([0])
        | "read" >> beam.ParDo(counting_job.Count(available, slice_size)).with_output_types(tuple[int, int])
        | "one key" >> beam.Map(lambda pair: (0, pair[1])).with_output_types(tuple[int, int])
        | "total" >> beam.ParDo(Total()).with_output_types(pa.RecordBatch)
        | "numbers" >> WriteTable(lake, SPEC)
    )
    result = pipeline.run()
    result.wait_until_finish()
    return result


def values(lake: Lake) -> Counter[int]:
    """How often each number is in the table."""
    return Counter(read(lake, "numbers", ["value"])["value"].to_pylist())


def expected(first: int, last: int) -> Counter[int]:
    """Elements `first` to before `last`, each once."""
    return Counter(index * counting_job.SOURCES for index in range(first, last))


def newest_total(lake: Lake) -> int:
    """The running total of all numbers, as state had it."""
    return int(max(read(lake, "numbers", ["total"])["total"].to_pylist()))


class BreaksWhileTold(LakePublisher):
    """A table whose store is down while the file that the variable names is there."""

    def publish(self, epoch: Any, staged: Any) -> Any:
        if os.path.exists(os.environ["TABLE_IS_DOWN"]):
            raise OSError("the table's store is down")
        return super().publish(epoch, staged)
