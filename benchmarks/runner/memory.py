"""The most memory that GroupByKey takes for one key with very many values, for very many keys, and for more bytes than
there is memory for.

Each case runs in a process of its own with a Spark of its own. Two things are measured: the peak resident memory of
the largest of Spark's Python workers, in which the stages run; and the peak of all processes of the run together, with
pages that several of them share counted once (PSS, looked at twice a second): the driver, which in local mode is the
executor's JVM too, and the workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import psutil
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.runner.measure import Figure, largest, proportional_mib

BLOCKS, TASKS, LOOK_EVERY_S = 20, 2, 0.5
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
        output, together = watched([sys.executable, "-m", "benchmarks.runner.memory", case, str(count)])
        seen = json.loads(output.splitlines()[-1])
        assert seen["values"] == count
        what = f"{count:,} pairs, {case}"
        yield Figure("memory", f"{what}, a worker", seen["peak"] / 1024, "MiB", "<= 1024")
        parts = ", ".join(f"{kind} {mib:,.0f}" for kind, mib in together.items())
        yield Figure("memory", f"{what}, all", sum(together.values()), f"MiB of all processes, PSS ({parts})")


def watched(command: list[str]) -> tuple[str, dict[str, float]]:
    """Runs it -> (what it wrote, MiB of its processes by kind, when they had the most together)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        root, samples = psutil.Process(job.pid), []
        while job.poll() is None:
            samples.append(proportional_mib(root))
            time.sleep(LOOK_EVERY_S)
        output = job.communicate()[0]
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, command)
    return output, largest(samples)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]))) + "\n")
