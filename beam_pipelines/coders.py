"""The coder of record batches: Arrow's IPC stream format, self-describing and read without copying."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from apache_beam import coders

_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """One IPC stream with the schema and the batch. Measured before it is written: a growing buffer copies it again."""
    size = pa.MockOutputStream()
    _write(batch, size)
    buffer = pa.allocate_buffer(size.size())
    _write(batch, pa.FixedSizeBufferWriter(buffer))
    encoded: bytes = buffer.to_pybytes()
    return encoded


def _write(batch: pa.RecordBatch, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)


def decode_batch(data: bytes) -> pa.RecordBatch:
    """The batch of `encode_batch`; its columns are views of `data`."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


class RecordBatchCoder(coders.Coder):
    """Record batches of any schema. Equal batches encode alike, but do not use it for keys: keys are small."""

    def encode(self, batch: pa.RecordBatch) -> bytes:
        return encode_batch(batch)

    def decode(self, data: bytes) -> pa.RecordBatch:
        return decode_batch(data)

    def is_deterministic(self) -> bool:
        return False

    def estimate_size(self, batch: pa.RecordBatch) -> int:
        # Beam samples sizes for its metrics; the default encodes the whole batch to learn them.
        return int(batch.nbytes)

    def to_type_hint(self) -> Any:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def register() -> None:
    """Makes `pyarrow.RecordBatch` type hints mean this coder. Importing the module does it."""
    coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


register()
