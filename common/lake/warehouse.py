"""Where the tables are: a warehouse on a local path or an object store, and the specs of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from pyarrow import fs

from common.errors import PipelineError
from common.lake.schema import storage_schema


@dataclass(frozen=True)
class TableSpec:
    """What a table should be: its name under the warehouse (`bronze`, `gold/<view>`), its rows, its partitions.

    Partition columns are computed ones (a date, an hour, a view's name): each distinct value is a folder.
    """

    name: str
    schema: pa.Schema
    partition_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [name for name in self.partition_by if name not in self.schema.names]
        if missing:
            raise PipelineError(
                f"Table {self.name} is partitioned by {', '.join(missing)}, which its schema lacks.",
                code="lake_bad_spec",
                hint="Add the column to the schema or drop it from partition_by.",
            )

    @cached_property
    def storage_schema(self) -> pa.Schema:
        """The rows as Delta keeps them, partition columns included."""
        return storage_schema(self.schema)

    @cached_property
    def file_schema(self) -> pa.Schema:
        """The rows as the Parquet files keep them: partition columns live in the log only."""
        return pa.schema([field for field in self.storage_schema if field.name not in self.partition_by])

    @cached_property
    def stats_columns(self) -> tuple[str, ...]:
        """Columns whose minimum and maximum per file go to the log, so that readers skip files: the timestamps."""
        return tuple(field.name for field in self.file_schema if pa.types.is_timestamp(field.type))


@dataclass(frozen=True)
class Lake:
    """A warehouse. Picklable.

    `warehouse` is a local path or an `s3://` or `gs://` URL. `storage_options` are delta-rs' (region, endpoint);
    credentials come from the environment of the process that reads or writes, never from here.
    """

    warehouse: str
    storage_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_local:  # workers may run in another directory
            object.__setattr__(self, "warehouse", str(Path(self.warehouse).absolute()))

    @property
    def is_local(self) -> bool:
        return "://" not in self.warehouse

    def uri(self, path: str) -> str:
        """Address of a table or file of the warehouse, as an absolute path or URL."""
        return f"{self.warehouse.rstrip('/')}/{path}"

    def filesystem(self, path: str) -> tuple[fs.FileSystem, str]:
        """The file system that holds a table or file of the warehouse, and its full path there."""
        if self.is_local:
            return fs.LocalFileSystem(), self.uri(path)
        filesystem, full_path = fs.FileSystem.from_uri(self.uri(path))
        return filesystem, full_path

    def open(self, table: str, version: int | None = None) -> DeltaTable:
        """The table's newest (or given) version. Raises PipelineError `lake_no_table` if there is none."""
        try:
            return DeltaTable(self.uri(table), version=version, storage_options=dict(self.storage_options))
        except TableNotFoundError as error:
            raise PipelineError(
                f"There is no table {table} in {self.warehouse}.",
                code="lake_no_table",
                hint="python -m beam_pipelines run writes it.",
            ) from error

    def exists(self, table: str) -> bool:
        return bool(DeltaTable.is_deltatable(self.uri(table), storage_options=dict(self.storage_options)))
