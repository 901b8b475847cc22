"""Phase two: staged files enter the table's log, once per (job, epoch), in one atomic commit."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from common.errors import PipelineError
from common.lake.schema import conflicts, has_new_fields
from common.lake.staging import StagedFile
from common.lake.warehouse import Lake, TableSpec
from common.publish import Epoch

Mode = Literal["append", "overwrite"]
MAX_ATTEMPTS = 6


def create_table(lake: Lake, spec: TableSpec) -> DeltaTable:
    """The table, made if absent. Of several processes that make it at once one succeeds and all get it."""
    for _ in range(MAX_ATTEMPTS):
        if lake.exists(spec.name):
            return lake.open(spec.name)
        try:
            return DeltaTable.create(
                lake.uri(spec.name),
                schema=Schema.from_arrow(spec.storage_schema),
                mode="error",
                partition_by=list(spec.partition_by),
                storage_options=dict(lake.storage_options),
                # Or the loser's commit is moved to version 1, where its schema would replace the winner's.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except DeltaError:
            if not lake.exists(spec.name):
                raise
    return lake.open(spec.name)


def commit(
    lake: Lake,
    spec: TableSpec,
    epoch: Epoch,
    files: Sequence[StagedFile],
    *,
    mode: Mode = "append",
    writer: str | None = None,
) -> int:
    """Adds the files to the table as one version and returns the table's version.

    `append` adds them; `overwrite` replaces all rows and the schema, and keeps the old version for time travel.
    The commit carries the transaction id `<job>/<writer>` at `epoch.number`: if the log has it already nothing is
    done, so a replayed epoch is harmless even when two drivers race. Two writers of one table in one job need
    different names (default: the table's), or the second is taken for a repeat of the first.

    Raises PipelineError `lake_schema_conflict` if the rows' types contradict the table's, `lake_contention` if
    other writers win every attempt.
    """
    app = f"{epoch.job}/{writer or spec.name}"
    for attempt in range(MAX_ATTEMPTS):
        table = create_table(lake, spec)
        done = table.transaction_version(app)
        if (done is not None and done >= epoch.number) or (mode == "append" and not files):
            return int(table.version())
        try:
            if mode == "append":
                table = _grow(lake, spec, table)
            table.create_write_transaction(
                actions=[_add_action(file) for file in files],
                mode=mode,
                schema=table.schema() if mode == "append" else Schema.from_arrow(spec.storage_schema),
                partition_by=list(spec.partition_by),
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(app, epoch.number)],
                    custom_metadata={"job": epoch.job, "epoch": str(epoch.number)},
                ),
            )
            table.update_incremental()
            return int(table.version())
        except CommitFailedError:
            # Somebody committed since we looked: perhaps our own epoch, so look again. Jitter parts the racers.
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311
    raise PipelineError(
        f"Others changed table {spec.name} during each of {MAX_ATTEMPTS} attempts to commit epoch {epoch.number}.",
        code="lake_contention",
        hint="Stop the other writers of the table, then start the job again: it goes on from this epoch.",
    )


def _add_action(file: StagedFile) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values=file.partition,
        modification_time=file.modified_ms,
        data_change=True,
        stats=file.stats,
    )


def _grow(lake: Lake, spec: TableSpec, table: DeltaTable) -> DeltaTable:
    """Adds columns and nested fields that the spec has and the table lacks, as a version of its own, all nullable."""
    current, wanted = pa.struct(list(pa.schema(table.schema()))), pa.struct(list(spec.storage_schema))
    problems = conflicts(current, wanted) + _partition_conflicts(table.metadata().partition_columns, spec.partition_by)
    if problems:
        raise PipelineError(
            f"Table {spec.name} cannot take these rows: {'; '.join(problems)}.",
            code="lake_schema_conflict",
            hint="Columns may be added, not retyped: give the column a new name, or write to a new warehouse and "
            "backfill it (--mode batch).",
        )
    if has_new_fields(current, wanted):
        # An append of no rows that merges schemas: the one call of deltalake that adds nested fields too.
        write_deltalake(table, spec.storage_schema.empty_table(), mode="append", schema_mode="merge")
        return lake.open(spec.name)
    return table


def _partition_conflicts(current: Iterable[str], wanted: Iterable[str]) -> list[str]:
    if list(current) == list(wanted):
        return []
    return [f"it is partitioned by ({', '.join(current)}) and the rows by ({', '.join(wanted)})"]
