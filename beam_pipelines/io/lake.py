"""`WriteTable`: record batches to a Delta table, exactly once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, PDone
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.io.publish import Publish
from common.errors import PipelineError
from common.lake import Lake, LakePublisher, Mode, TableSpec, stage

FLUSH_BYTES = 256 * 1024 * 1024
FLUSH_ROWS = 2_000_000

_writers_of: weakref.WeakKeyDictionary[beam.Pipeline, set[str]] = weakref.WeakKeyDictionary()


class WriteTable(beam.PTransform[PCollection[pa.RecordBatch], PDone]):
    """PCollection[RecordBatch] -> rows of a table, partitioned, one version per epoch.

    Workers write Parquet files that no reader sees and emit descriptors; the publisher commits them (see
    common/lake/transaction.py). Rows of a bundle that fails are never committed.

    `mode`: `append`, or `overwrite` for a batch run that replaces the table. `job` is only used on runners that do
    not drive the publisher themselves (see `Publish`). `writer` must be given, and stay the same across restarts,
    when several transforms of one pipeline write to one table.
    """

    def __init__(
        self, lake: Lake, spec: TableSpec, job: str | None = None, *, mode: Mode = "append", writer: str | None = None
    ) -> None:
        super().__init__()
        self._lake, self._spec, self._job, self._mode = lake, spec, job, mode
        self._writer = writer or spec.name

    def expand(self, batches: PCollection[pa.RecordBatch]) -> PDone:
        writers = _writers_of.setdefault(batches.pipeline, set())
        identity = f"{self._spec.name} {self._writer}"
        if identity in writers:
            # The second would be skipped as a repeat of the first: rows lost without a word.
            raise PipelineError(
                f"Two steps of the pipeline write to table {self._spec.name} as {self._writer!r}.",
                code="lake_writer_clash",
                hint="Give each WriteTable a `writer` of its own, or flatten their inputs.",
            )
        writers.add(identity)
        return (
            batches
            | "one_window" >> beam.WindowInto(GlobalWindows())
            | "stage" >> beam.ParDo(_Stage(self._lake, self._spec)).with_output_types(bytes)
            | "publish" >> Publish(LakePublisher(self._lake, self._spec, self._mode, self._writer), self._job)
        )


class _Stage(beam.DoFn):
    """Collects the bundle's batches and stages them in few, large files: RecordBatch -> staged descriptor."""

    def __init__(self, lake: Lake, spec: TableSpec) -> None:
        self._lake, self._spec = lake, spec

    def start_bundle(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._bytes = self._rows = 0

    def process(self, batch: pa.RecordBatch) -> Iterator[bytes]:
        self._batches.append(batch)
        self._bytes += batch.nbytes
        self._rows += batch.num_rows
        if self._bytes >= FLUSH_BYTES or self._rows >= FLUSH_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for descriptor in self._flush():
            yield GlobalWindows.windowed_value(descriptor)

    def _flush(self) -> list[bytes]:
        descriptor = stage(self._lake, self._spec, self._batches)
        self.start_bundle()
        return [] if descriptor is None else [descriptor]
