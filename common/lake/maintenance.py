"""Housekeeping of a table: few large files instead of many small ones, and no files that nobody needs."""

from __future__ import annotations

from dataclasses import dataclass

from common.lake.warehouse import Lake

TARGET_FILE_BYTES = 256 * 1024 * 1024
RETENTION_HOURS = 7 * 24


@dataclass(frozen=True)
class MaintenanceReport:
    """What `maintain` did to a table. Counts of files."""

    table: str
    files_compacted: int
    files_written: int
    files_deleted: int


def maintain(lake: Lake, table: str, *, retention_hours: int = RETENTION_HOURS) -> MaintenanceReport:
    """Compacts each partition to files of up to 256 MiB, then deletes files that no version in retention names.

    Safe beside running writers as long as `retention_hours` is longer than the time from staging a file to its commit:
    staged and orphaned files look alike, and both go when they are older. Time travel ends at the retention too.
    """
    delta = lake.open(table)
    compaction = delta.optimize.compact(target_size=TARGET_FILE_BYTES)
    deleted = delta.vacuum(retention_hours=retention_hours, dry_run=False, enforce_retention_duration=False, full=True)
    return MaintenanceReport(table, compaction["numFilesRemoved"], compaction["numFilesAdded"], len(deleted))
