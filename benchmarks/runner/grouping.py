"""GroupByKey and CombinePerKey over small int pairs in a batch, against Beam's in-memory runners and PySpark's RDDs."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from operator import add
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.prism_runner import PrismRunner

from benchmarks.runner.measure import Figure, processor_seconds
from spark_jobs.beam_runner import SparkRunner

KEYS, BLOCKS, CORES = 100_000, 8, 2
PRISM_PAIRS = 100_000  # at 10 million it would take most of the time
Build = Callable[[Any, int], None]
Run = Callable[[int], int]


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


def run_beam(runner: Any, build: Build, elements: int, flags: list[str]) -> int:
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


def find_prism(path: str | None) -> str | None:
    """Beam's runner in Go: `path`, else $PRISM, else `prism` on the PATH."""
    return path or os.environ.get("PRISM") or shutil.which("prism")


def run_prism(binary: str, build: Build, elements: int) -> int:
    flags = [f"--prism_location={binary}", "--environment_type=LOOPBACK", "--prism_log_level=error"]
    return run_beam(PrismRunner(), build, elements, flags)


def measure(spark: Any, elements: int, turns: int, prism: str | None) -> Iterator[Figure]:
    for how, build in (("group", group), ("combine", combine)):
        ours: Run = partial(run_beam, SparkRunner(spark), build, flags=[f"--tasks={CORES}"])
        peers: dict[str, tuple[str, Run]] = {
            "PySpark RDD": ("<= 3", partial(run_rdd, spark.sparkContext, how)),
            "FnApiRunner": ("<= 1", partial(run_beam, FnApiRunner(), build, flags=[])),
        }
        yield from compare(how, elements, turns, ours, peers)
        if prism:
            yield from compare(how, PRISM_PAIRS, turns, ours, {"Prism": ("<= 1", partial(run_prism, prism, build))})


def compare(how: str, elements: int, turns: int, ours: Run, peers: dict[str, tuple[str, Run]]) -> Iterator[Figure]:
    """Runs of ours and its peers take turns, so that they meet the same load. Each figure is a median."""
    truth = sum(value for block in range(BLOCKS) for _, value in pairs(block, elements // BLOCKS))
    walls: dict[str, list[float]] = defaultdict(list)
    processors: dict[str, list[float]] = defaultdict(list)
    runs = {"ours": ours, **{name: run for name, (_, run) in peers.items()}}
    for turn in range(turns + 1):
        for name, run in runs.items():
            began, before = time.perf_counter(), processor_seconds()
            assert run(elements) == truth
            if turn:  # the first warms up
                walls[name].append(time.perf_counter() - began)
                processors[name].append(processor_seconds() - before)
    for kind, taken in (("", walls), (", processor", processors)):
        value = statistics.median(taken["ours"])
        what = f"{how}, {elements:,} pairs, seconds{kind}"
        for name, (target, _) in peers.items():
            yield Figure("grouping", what, value, "s", "" if kind else target, name, statistics.median(taken[name]))
