"""What `status` shows, read from what is there: processes, tables' logs, a checkpoint's last manifest. Changes nothing.

No record's values: rows are counted, dead letters by layer and reason.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from beam_pipelines.cli.probes import end_offsets
from common.config import Settings
from common.domain import Domain
from common.lake import Lake, row_count, scan

SOURCE = "source/"  # the step labels of the job's Kafka source begin so


@dataclass(frozen=True)
class TableState:
    """A table's newest version and its rows by the log; both None if there is no such table."""

    name: str
    version: int | None
    rows: int | None


@dataclass(frozen=True)
class DeadLetters:
    """How many rows a layer refused, for one reason."""

    layer: str
    reason: str
    rows: int


@dataclass(frozen=True)
class PartitionState:
    """How far a stream is in a Kafka partition.

    offset: the next one to read. watermark: the event time that it has reached, ISO 8601; None at the beginning.
    lag: records from `offset` on; None if Kafka was not asked or does not answer.
    """

    partition: int
    offset: int
    watermark: str | None
    lag: int | None = None


@dataclass(frozen=True)
class CheckpointState:
    """A stream's last committed epoch. `age_seconds`: since its commit. `consumed`: records since the beginning."""

    path: str
    epoch: int
    age_seconds: float
    consumed: int
    partitions: tuple[PartitionState, ...]

    @property
    def lag(self) -> int | None:
        """Records that are still to be read; None if that is not known of each partition."""
        lags = [each.lag for each in self.partitions if each.lag is not None]
        return sum(lags) if lags and len(lags) == len(self.partitions) else None

    def with_lag(self, settings: Settings, topic: str) -> CheckpointState:
        """Compared with the log's end now. Raises PipelineError `kafka_unreachable`."""
        ends = end_offsets(settings, topic, [each.partition for each in self.partitions])
        behind = (replace(each, lag=max(0, ends[each.partition] - each.offset)) for each in self.partitions)
        return replace(self, partitions=tuple(behind))


def table_states(lake: Lake, domain: Domain) -> list[TableState]:
    """All tables that the domain's job writes."""
    names = ["bronze", "silver", *(f"gold/{view.name}" for view in domain.features), "dlq"]
    return [_table_state(lake, name) for name in names]


def _table_state(lake: Lake, name: str) -> TableState:
    if not lake.exists(name):
        return TableState(name, None, None)
    return TableState(name, int(lake.open(name).version()), row_count(lake, name))


def dead_letters(lake: Lake) -> list[DeadLetters]:
    """Most first; empty if there is no table."""
    if not lake.exists("dlq"):
        return []
    counted = scan(lake, "dlq").group_by("layer", "reason").agg(pl.len().alias("rows")).collect()
    found = [DeadLetters(**row) for row in counted.iter_rows(named=True)]
    return sorted(found, key=lambda each: (-each.rows, each.layer, each.reason))


def checkpoint_state(path: str) -> CheckpointState | None:
    """None if the checkpoint has no committed epoch. Imports Beam, which takes 2 s, but only if it has one."""
    if "://" not in path and not any(Path(path, "epochs").glob("*.json")):
        return None
    from beam_pipelines.io.source_position import source_position
    from spark_jobs.beam_runner.checkpoint.progress import last_manifest, sum_counters

    manifest = last_manifest(path)
    if manifest is None:
        return None
    partitions = [
        PartitionState(*source_position(residual.element), _instant(residual.watermark_us))
        for residual in manifest.residuals
        if residual.transform.startswith(SOURCE)
    ]
    return CheckpointState(
        path,
        manifest.epoch,
        round(max(0.0, time.time() - manifest.committed_us / 1e6), 1),
        sum_counters(manifest.metrics).get("pipeline/consumed", 0),
        tuple(sorted(partitions, key=lambda each: each.partition)),
    )


def _instant(watermark_us: int) -> str | None:
    """None for Beam's least and greatest times, which lie outside of the years that a datetime has."""
    try:
        return datetime.fromtimestamp(watermark_us / 1e6, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return None
