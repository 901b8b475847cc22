"""Arrow record batches through a Reshuffle: megabytes per second, against the same bytes through an RDD shuffle.

Per second of the clock, which on Spark is of both cores, and per core-second of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.coders import encode_batch, register
from benchmarks.runner.measure import Figure, median_costs, median_seconds
from spark_jobs.beam_runner import SparkRunner

ROWS, BLOCKS, CORES = 65_536, 8, 2  # a batch is 1 MiB
PEER, A_CORE, TARGET = "RDD partitionBy", "MB per core-second, all processes", ">= 1,000 MB/s a core"


def batches(block: int, count: int) -> Iterator[pa.RecordBatch]:
    values = np.random.default_rng(block).integers(0, 1 << 40, ROWS)
    for number in range(count):
        yield pa.record_batch({"a": values + number, "b": values})


def run_beam(runner: Any, megabytes: int, flags: list[str]) -> None:
    count = megabytes // BLOCKS
    with beam.Pipeline(runner=runner, options=PipelineOptions(flags)) as pipeline:
        _ = (
            pipeline
            | beam.Create(list(range(BLOCKS)))
            | "spread" >> beam.Reshuffle()
            | beam.FlatMap(lambda block: batches(block, count)).with_output_types(pa.RecordBatch)
            | "measured" >> beam.Reshuffle()
            | beam.Map(lambda batch: batch.num_rows)
        )


def rdd_steps(context: Any, megabytes: int) -> dict[str, Callable[[], object]]:
    """What the peer's work is made of: each does what the one before does, and more; the last one does it all."""
    count = megabytes // BLOCKS
    blocks = context.parallelize(list(range(BLOCKS)), CORES)
    encoded = blocks.flatMap(lambda block: ((n, encode_batch(b)) for n, b in enumerate(batches(block, count))))

    def shuffled() -> Any:  # anew: Spark would not run a stage again of which it has the files
        return encoded.partitionBy(CORES, int)

    def received() -> None:
        assert shuffled().values().map(len).count() == BLOCKS * count

    return {
        "made": lambda: encoded.mapPartitions(lambda some: [sum(1 for _ in some)]).sum(),
        "and sent to the JVM": lambda: encoded._jrdd.count(),
        "and shuffled": lambda: shuffled()._jrdd.count(),
        "and sent to Python": received,
    }


def measure(spark: Any, megabytes: int, turns: int) -> Iterator[Figure]:
    register()
    local = median_seconds(lambda: run_beam(SparkRunner(), megabytes, ["--transport=local", "--tasks=1"]), turns)
    yield Figure("batches", f"Reshuffle, {megabytes:,} MB, local", megabytes / local, "MB/s on one core", TARGET)
    steps = rdd_steps(spark.sparkContext, megabytes)
    beam_flags = [f"--tasks={CORES}"]
    ours, *of_steps = median_costs(
        [lambda: run_beam(SparkRunner(spark), megabytes, beam_flags), *steps.values()], turns
    )
    peer = of_steps[-1]
    what = f"Reshuffle, {megabytes:,} MB, Spark"
    yield Figure("batches", what, megabytes / ours.wall, f"MB/s on {CORES} cores", "", PEER, megabytes / peer.wall)
    yield Figure("batches", what, megabytes / ours.cores, A_CORE, TARGET, PEER, megabytes / peer.cores)
    for kind, taken in ours.kinds.items():
        yield Figure("batches", f"{what}, {kind}", taken, "core-seconds", "", PEER, peer.kinds[kind])
    for step, cost in zip(steps, of_steps, strict=True):
        yield Figure("batches", f"{PEER}, {megabytes:,} MB, {step}", cost.cores, "core-seconds")
