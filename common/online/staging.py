"""Phase one of the online sink: the newest row per entity of a bundle, kept until the epoch is committed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from common.domain import FeatureView
from common.lake import Lake
from common.lake.durable import delete_file, read_file, write_file
from common.lake.reader import PANE_ORDER

# Larger ones would make the epoch's manifest heavy: they go to a file.
MAX_INLINE_BYTES = 64 * 1024
FOLDER = "_online"
_INLINE, _FILE = b"I", b"F"


def newest_rows(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Rows of gold/<view> -> one per entity: the newest tile's current pane, with the columns that staging keeps."""
    columns = [view.key, "event_timestamp", *view.schema().names, "events", "pane"]
    rank = pl.col("pane").replace_strict(PANE_ORDER, return_dtype=pl.Int8)
    newest = pl.DataFrame(rows.select(columns)).sort("event_timestamp", "events", rank).unique(view.key, keep="last")
    schema = pa.schema([view.gold_schema().field(name) for name in columns])
    return newest.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def stage_online(lake: Lake, view: FeatureView, batches: Sequence[pa.RecordBatch]) -> bytes | None:
    """The staged descriptor of a bundle's rows; None if there are none. Up to 64 kB of Arrow IPC travel inside it,
    more goes to a file of the warehouse."""
    if not any(batch.num_rows for batch in batches):
        return None
    rows = newest_rows(view, pa.Table.from_batches(batches))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)
    data = sink.getvalue()
    if data.size <= MAX_INLINE_BYTES:
        return _INLINE + bytes(data)
    path = f"{FOLDER}/{view.name}/{uuid.uuid4().hex}.arrows"
    write_file(lake, path, data)
    return _FILE + path.encode()


def read_staged(lake: Lake, descriptor: bytes) -> pa.Table | None:
    """The rows of a descriptor; None if its file is gone, which `discard_staged` does once the rows are published."""
    kind, rest = descriptor[:1], descriptor[1:]
    data = rest if kind == _INLINE else read_file(lake, rest.decode())
    return None if data is None else pa.ipc.open_stream(data).read_all()


def discard_staged(lake: Lake, descriptors: Sequence[bytes]) -> None:
    """Deletes the files of published descriptors."""
    for descriptor in descriptors:
        if descriptor[:1] == _FILE:
            delete_file(lake, descriptor[1:].decode())
