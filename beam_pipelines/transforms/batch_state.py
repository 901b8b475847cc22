"""State of a key as one record batch, of a format that is checked."""

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


class BatchState:
    """Reads and writes state cells. The format is `name` and the columns: a job refuses state of another one."""

    def __init__(self, name: str, schema: pa.Schema) -> None:
        self._format = f"{name}: {', '.join(f'{field.name} {field.type}' for field in schema)}".encode()
        self._schema = schema.remove_metadata()

    def load(self, cell: Cell) -> pa.RecordBatch:
        """The stored rows; none if the cell is empty. Raises PipelineError `state_format`."""
        batch = cell.read()
        if batch is None:
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        found = (batch.schema.metadata or {}).get(_FORMAT_KEY, b"unknown")
        if found != self._format:
            raise PipelineError(
                f"the checkpoint holds state of format {found.decode()!r}; this job reads {self._format.decode()!r}",
                code="state_format",
                hint="run the version that wrote it, or start on a new checkpoint",
            )
        return batch.replace_schema_metadata(None)

    def store(self, cell: Cell, batch: pa.RecordBatch) -> None:
        """No rows: no state."""
        if batch.num_rows:
            cell.write(batch.replace_schema_metadata({_FORMAT_KEY: self._format}))
        else:
            cell.clear()
