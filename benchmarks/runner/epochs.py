"""What an epoch with next to no data, and a batch of one stage, cost over an empty PySpark job of as many levels."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.runner.measure import Figure, median_seconds, processor_seconds, used
from benchmarks.runner.slices import slices
from spark_jobs.beam_runner import SparkRunner

LEVELS, TASKS, WARM_UP = (1, 2, 3), 2, 5
WHERE = (
    ("as Spark jobs", "<= 1.3", ("--driver_epochs_below_ms=0",)),
    ("by default", "<= 1.3", ()),  # in the driver, after some that were small
    ("without Spark", "<= 0.1 s", ("--transport=local",)),
)


def epoch_seconds(spark: Any, levels: int, epochs: int, *how: str) -> float:
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        flags = ["--streaming", "--until_idle", f"--tasks={TASKS}", f"--checkpoint={root}", *how]
        runner = SparkRunner(spark, on_epoch=lambda info: seconds.append(info.seconds))
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(flags))
        some = pipeline | beam.Create([0]) | beam.ParDo(slices(epochs + WARM_UP)).with_output_types(int)
        for _ in range(levels - 1):
            some |= f"shuffle {_}" >> beam.Reshuffle()
            some |= f"step {_}" >> beam.Map(lambda number: number).with_output_types(int)
        pipeline.run().wait_until_finish()
    return statistics.median(seconds[WARM_UP : WARM_UP + epochs])


def empty_job(context: Any, levels: int) -> None:
    rdd = context.parallelize(list(range(TASKS)), TASKS)
    for _ in range(levels - 1):
        rdd = rdd.map(lambda number: (number, number)).partitionBy(TASKS, int).values()
    rdd.mapPartitions(list).collect()


def one_stage(spark: Any) -> None:
    """A whole batch: the pipeline made, planned, run as one Spark stage, and committed."""
    with beam.Pipeline(runner=SparkRunner(spark), options=PipelineOptions([f"--tasks={TASKS}"])) as pipeline:
        _ = pipeline | beam.Impulse() | beam.Map(lambda nothing: nothing)


def measure_one_stage(spark: Any, turns: int) -> Iterator[Figure]:
    """In pairs, so that both meet the same load."""
    for clock, target in ((time.perf_counter, "<= 0.2 s more"), (processor_seconds, "")):
        pairs = [
            (used(clock, lambda: one_stage(spark)), used(clock, lambda: empty_job(spark.sparkContext, 1)))
            for _ in range(WARM_UP + turns)
        ][WARM_UP:]
        ours, floor = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        what = "batch of one stage" + ("" if target else ", processor")
        yield Figure("epochs", what, ours, "s", target, "empty RDD job", floor)


def measure(spark: Any, epochs: int) -> Iterator[Figure]:
    yield from measure_one_stage(spark, epochs)
    for levels in LEVELS:

        def empty(levels: int = levels) -> None:
            empty_job(spark.sparkContext, levels)

        floor = median_seconds(empty, epochs, warm_up=WARM_UP)
        for where, target, flags in WHERE:
            ours = epoch_seconds(spark, levels, epochs, *flags)
            yield Figure("epochs", f"small epoch, {levels} levels, {where}", ours, "s", target, "empty RDD job", floor)
