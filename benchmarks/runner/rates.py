"""How many elements a stream takes per second of processor time: in one thread without Spark, and on Spark.

A rate counts everything that the epochs after the first ones need: making the elements, windowing them, shuffling,
state files, manifests. On Spark it counts every process: the driver's Python, the JVM, the Python workers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.runner.measure import processor_seconds
from benchmarks.runner.slices import read
from spark_jobs.beam_runner import SparkRunner

WARM_UP, COMPILED_AFTER, SPARK_TASKS = 3, 20, 2  # epochs
ON_SPARK = "elements per core-second, all processes"
ONE_THREAD = ("--transport=local", "--tasks=1")
AS_SPARK_JOBS = (f"--tasks={SPARK_TASKS}", "--driver_epochs_below_ms=0")  # small epochs, too
Build = Callable[[Any], Any]


def local_rate(build: Build, epochs: int, size: int, *, timed: bool) -> float:
    """Per second of the job's only thread, in which the clock is read."""
    return rate_of(_clock(None, time.thread_time, build, epochs, size, timed, ONE_THREAD), size)


def spark_rate(spark: Any, build: Build, epochs: int, size: int, *, timed: bool) -> float:
    """Per core-second of all processes."""
    return rate_of(_clock(spark, processor_seconds, build, epochs, size, timed, AS_SPARK_JOBS), size)


def warm_up(spark: Any, build: Build, size: int, *, timed: bool) -> None:
    """In its first twenty epochs a new JVM takes more for compiling than for the work."""
    spark_rate(spark, build, COMPILED_AFTER, size, timed=timed)


def rate_of(clock: list[float], size: int) -> float:
    """From the processor time at the ends of epochs of `size` elements."""
    return size * (len(clock) - 1) / (clock[-1] - clock[0])


def _clock(
    spark: Any, now: Callable[[], float], build: Build, epochs: int, size: int, timed: bool, flags: tuple[str, ...]
) -> list[float]:
    """The time `now` at the end of the last epoch that warms up, and of those after it, but of none that only closes
    the windows."""
    clock: list[float] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        options = PipelineOptions(["--streaming", "--until_idle", f"--checkpoint={root}", *flags])
        pipeline = beam.Pipeline(runner=SparkRunner(spark, on_epoch=lambda _: clock.append(now())), options=options)
        build(read(pipeline, epochs + WARM_UP, size, timed=timed))
        pipeline.run().wait_until_finish()
    return clock[WARM_UP - 1 : WARM_UP + epochs]
