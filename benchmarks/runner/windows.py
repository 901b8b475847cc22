"""GroupByKey and CombinePerKey in windows of a stream. The peer is Beam's general trigger driver in our own runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import apache_beam as beam
from apache_beam.transforms import window

from benchmarks.runner.measure import Figure
from benchmarks.runner.rates import ON_SPARK, Build, local_rate, spark_rate, warm_up

SIZES, GENERAL_EPOCHS = (50_000, 200_000), 3  # the general driver is slow
FIXED, SESSIONS = window.FixedWindows(5), window.Sessions(2)
OVERHEAD: dict[str, Build] = {
    "timestamped source alone": lambda events: events | beam.Map(lambda _: None),
    "source and fixed windows alone": lambda events: events | beam.WindowInto(FIXED),
}
GROUPED: dict[str, tuple[Build, int]] = {
    "fixed windows, GroupByKey": (lambda events: events | beam.WindowInto(FIXED) | beam.GroupByKey(), 60_000),
    "fixed windows, CombinePerKey": (lambda events: events | beam.WindowInto(FIXED) | beam.CombinePerKey(sum), 60_000),
    "sessions, GroupByKey": (lambda events: events | beam.WindowInto(SESSIONS) | beam.GroupByKey(), 20_000),
}


def general_triggers() -> AbstractContextManager[object]:
    """All groupings take the path through Beam's general trigger driver."""
    return mock.patch("spark_jobs.beam_runner.keyed.grouped.fast_path", return_value=None)


def measure(spark: Any, epochs: int) -> Iterator[Figure]:
    size, (first, _) = SIZES[0], next(iter(GROUPED.values()))
    warm_up(spark, first, size, timed=True)
    for what, build in OVERHEAD.items():
        yield Figure("windows", f"{what}, {size:,}, local", local_rate(build, epochs, size, timed=True), "/s")
    for what, (build, target) in GROUPED.items():
        goal = f">= {target:,}/s"
        with general_triggers():
            peer = ("general trigger driver", local_rate(build, GENERAL_EPOCHS, size, timed=True))
        ours = local_rate(build, epochs, size, timed=True)
        yield Figure("windows", f"{what}, {size:,} an epoch, local", ours, "/s", goal, *peer)
        for size_on_spark in SIZES:
            ours = spark_rate(spark, build, epochs, size_on_spark, timed=True)
            yield Figure("windows", f"{what}, {size_on_spark:,} an epoch, Spark", ours, ON_SPARK, goal)
