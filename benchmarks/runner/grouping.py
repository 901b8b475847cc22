"""GroupByKey and CombinePerKey over small int pairs in a batch, against Beam's in-memory runner and PySpark's RDDs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.runner.measure import Figure, median_seconds
from spark_jobs.beam_runner import SparkRunner

KEYS, BLOCKS, CORES = 100_000, 8, 2


def pairs(block: int, size: int) -> Iterator[tuple[int, int]]:
    """The same pairs wherever they are made: keys in random order, small values."""
    draw = random.Random(block).random
    for index in range(size):
        yield int(draw() * KEYS), index & 127


def read(pipeline: Any, elements: int) -> Any:
    size = elements // BLOCKS
    return (
        pipeline
        | beam.Create(list(range(BLOCKS)))
        | beam.Reshuffle()
        | beam.FlatMap(lambda block: pairs(block, size)).with_output_types(tuple[int, int])
    )


class Tally(beam.DoFn):
    """Counts in a metric, so that the result can be checked and nothing is collected."""

    def __init__(self) -> None:
        self.keys = beam.metrics.Metrics.counter("benchmark", "keys")
        self.total = beam.metrics.Metrics.counter("benchmark", "total")

    def process(self, pair: tuple[int, Any]) -> None:
        self.keys.inc()
        self.total.inc(pair[1] if isinstance(pair[1], int) else sum(pair[1]))


def group(pipeline: Any, elements: int) -> None:
    _ = read(pipeline, elements) | beam.GroupByKey() | beam.ParDo(Tally())


def combine(pipeline: Any, elements: int) -> None:
    _ = read(pipeline, elements) | beam.CombinePerKey(sum) | beam.ParDo(Tally())


def run_beam(runner: Any, build: Callable[[Any, int], None], elements: int, flags: list[str]) -> int:
    """-> the sum of all values, from the metrics."""
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(flags))
    build(pipeline, elements)
    result = pipeline.run()
    result.wait_until_finish()
    (counter,) = result.metrics().query(beam.metrics.MetricsFilter().with_name("total"))["counters"]
    return int(counter.committed)


def run_rdd(context: Any, how: str, elements: int) -> int:
    size = elements // BLOCKS
    rdd = context.parallelize(list(range(BLOCKS)), CORES).flatMap(lambda block: pairs(block, size))
    grouped = rdd.reduceByKey(add, CORES) if how == "combine" else rdd.groupByKey(CORES).mapValues(sum)
    return int(grouped.values().sum())


def measure(spark: Any, elements: int, turns: int) -> Iterator[Figure]:
    truth = sum(value for block in range(BLOCKS) for _, value in pairs(block, elements // BLOCKS))
    for how, build in (("group", group), ("combine", combine)):

        def ours(build: Any = build) -> None:
            assert run_beam(SparkRunner(spark), build, elements, [f"--tasks={CORES}"]) == truth

        def in_memory(build: Any = build) -> None:
            assert run_beam(FnApiRunner(), build, elements, []) == truth

        def by_rdd(how: str = how) -> None:
            assert run_rdd(spark.sparkContext, how, elements) == truth

        our_seconds = median_seconds(ours, turns)
        what = f"{how}, {elements:,} pairs, seconds"
        rdd_seconds = median_seconds(by_rdd, turns)
        yield Figure("grouping", what, our_seconds, "s", "<= 3", "PySpark RDD", rdd_seconds)
        memory_seconds = median_seconds(in_memory, turns, warm_up=0)
        yield Figure("grouping", what, our_seconds, "s", "<= 1", "FnApiRunner", memory_seconds)
