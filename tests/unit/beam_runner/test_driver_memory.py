"""What passes through the driver: manifests, not elements."""

from __future__ import annotations

import subprocess
import sys

import pytest

JOB = """
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from spark_jobs.beam_runner import SparkRunner

BLOCKS, ROWS, KEYS = 6, 20_000, 1_000

def seen(group, side):
    sizes = len(list(group[1])), len(side), len(side[group[0]])
    beam.metrics.Metrics.counter("groups", "right").inc(sizes == (120, 120_000, 100))

def run(*flags):
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--tasks=3", LIMIT, *flags]))
    side, main = (
        pipeline
        | f"blocks {name}" >> beam.Create(range(BLOCKS))
        | f"spread {name}" >> beam.Reshuffle()
        | name >> beam.FlatMap(rows).with_output_types(tuple[int, str])
        for name, rows in {
            "side": lambda block: ((block * ROWS + n, "x" * 100) for n in range(ROWS)),
            "main": lambda block: ((n % KEYS, "y" * 200) for n in range(ROWS)),
        }.items()
    )
    _ = main | beam.GroupByKey() | beam.Map(seen, beam.pvalue.AsDict(side))
    result = pipeline.run()
    result.wait_until_finish()
    (right,) = (c.committed for c in result.metrics().query()["counters"] if c.key.metric.name == "right")
    assert right == KEYS, right

LIMIT = "--spark_conf=spark.driver.maxResultSize=600k"
run()
run("--streaming", "--driver_epochs_below_ms=0")
"""


@pytest.mark.slow
def test_a_driver_that_may_take_600_kb_runs_a_job_of_many_megabytes() -> None:
    """12 MB of a side input and 24 MB of groups: Spark refuses results of tasks that are larger together."""
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
