"""`Refine` and `Enrich`: bronze rows to silver rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from common.domain import Domain, Normalise, Reference
from common.errors import PipelineError
from common.records import flat_fields, millis, partition_columns


class Refine(beam.DoFn):
    """Bronze batch -> silver batch without the reference columns: flat, normalised, partitioned by the event's hour."""

    def __init__(self, domain: Domain) -> None:
        self._normalise = domain.normalise
        self._time = domain.event.time

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        flat = normalise(flatten(rows), self._normalise)
        date, hour = partition_columns(millis(flat.column(self._time)))
        flat = flat.set_column(flat.schema.get_field_index("date"), "date", date)
        yield flat.set_column(flat.schema.get_field_index("hour"), "hour", hour)


class Enrich(beam.DoFn):
    """Silver batch -> silver batch with the columns of the reference row whose key is the same; null if there is none.

    The reference table is a side input: one record batch, key column first.
    """

    def __init__(self, domain: Domain) -> None:
        self._reference = domain.reference
        self._names = domain.silver_schema.names

    def process(self, rows: pa.RecordBatch, table: pa.RecordBatch | None = None) -> Iterator[pa.RecordBatch]:
        if self._reference is not None and table is not None:
            rows = enrich(rows, table, self._reference.key)
        yield rows.select(self._names)


def flatten(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Nested records become columns (`device.os` -> `device_os`); the fields of a null record are null."""
    columns: list[pa.Array] = []
    for column in rows.columns:
        columns.extend(_leaves(column))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(flat_fields(rows.schema))))


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    if not pa.types.is_struct(column.type):
        yield column
        return
    for child in column.flatten():
        yield from _leaves(child)


def normalise(rows: pa.RecordBatch, rules: Normalise) -> pa.RecordBatch:
    """Trims and lower-cases the text columns that the domain names."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    for name in rules.trim:
        columns[name] = pc.utf8_trim_whitespace(columns[name])
    for name in rules.lower:
        columns[name] = pc.utf8_lower(columns[name])
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=rows.schema)


def enrich(rows: pa.RecordBatch, table: pa.RecordBatch, key: str) -> pa.RecordBatch:
    """Left join: appends the table's columns but its key."""
    matches = pc.index_in(rows.column(key), value_set=table.column(key))
    for name in table.schema.names:
        if name != key:
            rows = rows.append_column(name, table.column(name).take(matches))
    return rows


def read_reference(reference: Reference) -> pa.RecordBatch:
    """The reference CSV as one record batch of strings: key, then the declared columns. Empty text is null.

    Raises:
        PipelineError: a declared column is missing, or a key occurs twice.
    """
    names = [reference.key, *reference.columns]
    table = _read_csv(reference.file, names)
    keys = table.column(reference.key)
    if len(pc.unique(keys)) < len(keys):
        raise PipelineError(
            f"reference table {reference.name}: column {reference.key} of {reference.file} holds a value twice",
            code="bad_reference",
            hint="keep one row per key",
        )
    return table.combine_chunks().to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)


def _read_csv(path: Path, names: list[str]) -> pa.Table:
    options = csv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    try:
        return csv.read_csv(path, convert_options=options)
    except (KeyError, pa.ArrowInvalid, FileNotFoundError) as error:
        raise PipelineError(
            f"reference table {path} cannot be read with columns {', '.join(names)} ({type(error).__name__})",
            code="bad_reference",
            hint="compare its header with `reference` in domain.yaml",
        ) from None
