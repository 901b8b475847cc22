"""The most memory that a Python worker takes for GroupByKey of one key with very many values, and of very many keys.

Each case runs in a process of its own with a Spark of its own; what is measured is the peak resident memory of Spark's
Python workers, in which the stages run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.runner.measure import Figure

BLOCKS, TASKS = 20, 2
CASES = ("one key", "all keys different")


class Peak(beam.DoFn):
    """Checks each group, and tells the peak memory of the process in a metric."""

    def __init__(self) -> None:
        self.values = beam.metrics.Metrics.counter("benchmark", "values")
        self.peak = beam.metrics.Metrics.distribution("benchmark", "peak")

    def process(self, pair: tuple[int, Any]) -> None:
        self.values.inc(sum(1 for _ in pair[1]))

    def finish_bundle(self) -> None:
        import resource

        self.peak.update(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def run(case: str, elements: int) -> dict[str, int]:
    """-> values counted, peak resident kilobytes."""
    from spark_jobs.beam_runner import SparkRunner
    from spark_jobs.session import spark_session

    size = elements // BLOCKS
    keys = 1 if case == CASES[0] else elements
    runner = SparkRunner(spark_session(cores=TASKS))
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([f"--tasks={TASKS}"]))
    _ = (
        pipeline
        | beam.Create(list(range(BLOCKS)))
        | beam.Reshuffle()
        | beam.FlatMap(lambda block: (((block * size + i) % keys, i & 127) for i in range(size))).with_output_types(
            tuple[int, int]
        )
        | beam.GroupByKey()
        | beam.ParDo(Peak())
    )
    result = pipeline.run()
    metrics = result.metrics().query()
    (values,) = (int(c.committed) for c in metrics["counters"] if c.key.metric.name == "values")
    (peak,) = (int(d.committed.max) for d in metrics["distributions"] if d.key.metric.name == "peak")
    return {"values": values, "peak": peak}


def measure(elements: int) -> Iterator[Figure]:
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.runner.memory", case, str(elements)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["values"] == elements
        yield Figure("memory", f"GroupByKey, {elements:,} pairs, {case}", seen["peak"] / 1024, "MiB", "<= 1024")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]))) + "\n")
