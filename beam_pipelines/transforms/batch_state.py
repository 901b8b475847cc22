"""State of a bucket as one record batch, and when a bucket's event-time timer should fire next."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from common.errors import PipelineError

_FORMAT_KEY = b"state_format"


class Cell(Protocol):
    """What the SDK hands a DoFn for a `ReadModifyWriteStateSpec` of record batches."""

    def read(self) -> pa.RecordBatch | None: ...

    def write(self, batch: pa.RecordBatch) -> None: ...

    def clear(self) -> None: ...


class BundleState:
    """Each bucket's state, read once per bundle and written after each change.

    `name` and the columns of `schema` are the state's format: a job that finds another one refuses to start on it.
    """

    def __init__(self, name: str, schema: pa.Schema) -> None:
        self._format = f"{name}:{', '.join(f'{field.name} {field.type}' for field in schema)}".encode()
        self._schema = schema.with_metadata({_FORMAT_KEY: self._format})
        self._batches: dict[int, pa.RecordBatch] = {}

    def start_bundle(self) -> None:
        self._batches.clear()

    def load(self, bucket: int, cell: Cell) -> pa.RecordBatch:
        """The bucket's rows; none if it has no state. Raises PipelineError for state of another format."""
        batch = self._batches.get(bucket)
        if batch is None:
            batch = cell.read()
            if batch is None:
                return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in self._schema], schema=self._schema)
            self._check(batch)
            self._batches[bucket] = batch
        return batch

    def store(self, bucket: int, cell: Cell, batch: pa.RecordBatch) -> None:
        self._batches[bucket] = batch = batch.replace_schema_metadata(self._schema.metadata)
        if batch.num_rows:
            cell.write(batch)
        else:
            cell.clear()

    def _check(self, batch: pa.RecordBatch) -> None:
        found = (batch.schema.metadata or {}).get(_FORMAT_KEY, b"none")
        if found != self._format:
            raise PipelineError(
                f"the checkpoint holds state of format {found.decode()!r}; this job's is {self._format.decode()!r}",
                code="state_format",
                hint="run the version that wrote it, or start on a new checkpoint",
            )


def next_firing_ms(fired_ms: int, earliest_ms: int, latest_ms: int) -> int:
    """When to fire next, after `fired_ms`, for due times between `earliest_ms` and `latest_ms`.

    The earliest, unless more than twice as much is still to come: then halfway. One firing handles all that is due, and
    a DoFn cannot see how far the watermark really is: a replay of 22 years would fire for 190,000 hours one by one
    instead of 18 times. In a job that keeps up the due times are near each other, so nothing waits longer than it
    would for the next of them.
    """
    return max(earliest_ms, fired_ms + (latest_ms - fired_ms) // 2)
