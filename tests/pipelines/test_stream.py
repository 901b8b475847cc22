"""The job as a stream on our runner: many epochs, state and timers between them, and the same tables as the truth."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import polars as pl
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.pipelines.job import JobConfig, build
from common.domain import Domain
from common.lake import Lake, read
from spark_jobs.beam_runner import SparkRunner
from tests.pipelines.conftest import PARTITIONS, Log
from tests.pipelines.oracle import ENTITY_KEY, gold_of
from tests.pipelines.replay import ReplayLog
from tests.pipelines.running import to_rows


@pytest.mark.parametrize("slice_rows", [150, 2_000])
def test_a_stream_of_epochs_gives_the_truth(tmp_path: Path, domain: Domain, log: Log, slice_rows: int) -> None:
    lake = Lake(str(tmp_path / "lake"))
    flags = ["--streaming", "--transport=local", "--until_idle", f"--checkpoint={tmp_path / 'checkpoint'}"]
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    build(pipeline, JobConfig(domain, ReplayLog(log.partitions, slice_rows), log.writer_schemas, lake, bounded=False))
    result = pipeline.run()
    result.wait_until_finish()

    assert result.epochs > log.partitions[0].num_rows // slice_rows
    found = result.metrics().query(MetricsFilter().with_namespace("pipeline"))["counters"]
    counters: dict[str, int] = {}
    for counter in found:
        counters[counter.key.metric.name] = counters.get(counter.key.metric.name, 0) + counter.result
    truth = log.truth.counters()
    assert {name: counters[name] for name in truth} == truth
    silver = to_rows(read(lake, "silver"))
    assert sorted(row["event_id"] for row in silver) == sorted(row["event_id"] for row in log.truth.silver)

    watermark_ms = min(max(batch.column("kafka_ts_ms").to_pylist()) for batch in log.partitions) - 60_000
    assert len(log.partitions) == PARTITIONS
    for view, key in ENTITY_KEY.items():
        features = [*domain.view(view).schema().names, "events", "version_ms"]
        panes = read(lake, f"gold/{view}")
        assert counters[f"gold.{view}"] == panes.num_rows
        current = _current(panes, key)
        expected = {
            (row[key], row["tile_start_ms"]): [row[name] for name in features]
            for row in gold_of(log.truth.silver, view)
        }
        assert {tile: [row[name] for name in features] for tile, row in current.items()} == expected
        closed = {tile for tile in expected if tile[1] + 3_600_000 <= watermark_ms}
        assert closed
        assert {current[tile]["pane"] for tile in closed} <= {"on_time", "late"}
        assert {row["pane"] for tile, row in current.items() if tile not in closed} <= {"early"}


def _current(panes: object, key: str) -> dict[tuple[str, int], dict[str, object]]:
    """The pane with the most events of each tile; of equals the on-time one."""
    frame = pl.from_arrow(panes)
    assert isinstance(frame, pl.DataFrame)
    ordered = frame.sort("events", pl.col("pane").is_in(["on_time", "late"]))
    return {
        (row[key], row["tile_start"]): row for row in to_rows(ordered.to_arrow(compat_level=pl.CompatLevel.oldest()))
    }
