"""The most memory that a Python worker takes for GroupByKey of one key with very many values, of very many keys, and of
more bytes than there is memory for.

Each case runs in a process of its own with a Spark of its own; what is measured is the peak resident memory of Spark's
Python workers, in which the stages run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.runner.measure import Figure

BLOCKS, TASKS = 20, 2
KILOBYTE = bytes(1 << 10)
# The pair at a position of so many, the type of its value, and by how much fewer pairs there are.
CASES: dict[str, tuple[Callable[[int, int], Any], type, int]] = {
    "one key": (lambda at, _: (0, at & 127), int, 1),
    "all keys different": (lambda at, _: (at, at & 127), int, 1),
    "1 kB values, half of one key": (lambda at, count: (at % 2 and at * 7919 % (count // 10), KILOBYTE), bytes, 2),
}


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

    size, (pair_at, kind, _) = elements // BLOCKS, CASES[case]
    runner = SparkRunner(spark_session(cores=TASKS))
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([f"--tasks={TASKS}"]))
    _ = (
        pipeline
        | beam.Create(list(range(BLOCKS)))
        | beam.Reshuffle()
        | beam.FlatMap(lambda block: (pair_at(block * size + i, elements) for i in range(size))).with_output_types(
            tuple[int, kind]  # type: ignore[valid-type]
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
    for case, (_, _, fewer) in CASES.items():
        count = elements // fewer
        command = [sys.executable, "-m", "benchmarks.runner.memory", case, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["values"] == count
        yield Figure("memory", f"GroupByKey, {count:,} pairs, {case}", seen["peak"] / 1024, "MiB", "<= 1024")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]))) + "\n")
