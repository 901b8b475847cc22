"""Keyed state, windows and sessions in a stream, on one core without Spark.

The peers are Spark's `transformWithState` and Beam's general trigger driver.

Each epoch brings `size` elements over ten seconds of event time. For keyed state they are all of different keys, which
come again in the next epoch; for windows a key comes ten times, five times a window.
The rate is elements per second of processor time of the job's only thread, in the median epoch after the first ones.
It counts everything: making the elements, windowing them, state files, manifest.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any
from unittest import mock

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import userstate, window
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Timestamp

from benchmarks.runner import transform_with_state
from benchmarks.runner.measure import Figure
from spark_jobs.beam_runner import SparkRunner

SLICE, SMALL_SLICE, SECONDS_A_SLICE, WARM_UP = 50_000, 4_000, 10, 2
TRANSFORM_KEYS = 4_000  # `transformWithState` needs seconds for them


class _Slices(RestrictionProvider):
    def __init__(self, slices: int) -> None:
        self.slices = slices

    def initial_restriction(self, _element: Any) -> OffsetRange:
        return OffsetRange(0, self.slices)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, _element: Any, restriction: OffsetRange) -> int:
        return int(restriction.size())


def slices(count: int) -> beam.DoFn:
    """An unbounded source of slice numbers, one an epoch, with the watermark at the slice's end."""

    class Source(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self,
            _element: Any,
            tracker: Any = beam.DoFn.RestrictionParam(_Slices(count)),
            watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
        ) -> Iterator[Any]:
            number = tracker.current_restriction().start
            if tracker.try_claim(number):
                yield window.TimestampedValue(number, number * SECONDS_A_SLICE)
                watermark.set_watermark(Timestamp((number + 1) * SECONDS_A_SLICE))
                tracker.defer_remainder()

    return Source()


def pairs(number: int, size: int, keys: int) -> Iterator[tuple[int, int]]:
    """(key, value); the keys come in an order that looks random."""
    for index in range(size):
        yield (number * size + index) * 7919 % keys, index & 127


def timed_pairs(number: int, size: int) -> Iterator[Any]:
    """The same at their event times."""
    step = SECONDS_A_SLICE / size
    for index, pair in enumerate(pairs(number, size, size // 10)):
        yield window.TimestampedValue(pair, number * SECONDS_A_SLICE + index * step)


def read(pipeline: Any, count: int, size: int, *, timed: bool) -> Any:
    make = beam.FlatMap(timed_pairs, size) if timed else beam.FlatMap(pairs, size, size)
    return (
        pipeline
        | beam.Create([0])
        | beam.ParDo(slices(count)).with_output_types(int)
        | make.with_output_types(tuple[int, int])
    )


class ValueSum(beam.DoFn):
    SUM = userstate.ReadModifyWriteStateSpec("sum", VarIntCoder())

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(SUM)) -> None:
        total.write((total.read() or 0) + pair[1])


class AddUp(beam.CombineFn):
    def create_accumulator(self) -> int:
        return 0

    def add_input(self, total: int, value: int) -> int:
        return total + value

    def merge_accumulators(self, totals: Iterable[int]) -> int:
        return sum(totals)

    def extract_output(self, total: int) -> int:
        return total


class CombiningSum(beam.DoFn):
    SUM = userstate.CombiningValueStateSpec("sum", VarIntCoder(), AddUp())

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(SUM)) -> None:
        total.add(pair[1])


FIXED, SESSIONS = window.FixedWindows(5), window.Sessions(2)
Build = Callable[[Any], Any]
WINDOWED: dict[str, tuple[Build, int]] = {
    "timestamped source alone": (lambda events: events | beam.Map(lambda _: None), 0),
    "fixed windows, source and windowing alone": (lambda events: events | beam.WindowInto(FIXED), 0),
    "fixed windows, GroupByKey": (lambda events: events | beam.WindowInto(FIXED) | beam.GroupByKey(), 60_000),
    "fixed windows, CombinePerKey": (lambda events: events | beam.WindowInto(FIXED) | beam.CombinePerKey(sum), 60_000),
    "sessions, GroupByKey": (lambda events: events | beam.WindowInto(SESSIONS) | beam.GroupByKey(), 20_000),
}
STATEFUL: dict[str, tuple[Build, int]] = {
    "source alone": (lambda events: events | beam.Map(lambda _: None), 0),
    "stateful sum, value state": (lambda events: events | beam.ParDo(ValueSum()), 60_000),
    "stateful sum, combining state": (lambda events: events | beam.ParDo(CombiningSum()), 60_000),
}


def rate(build: Build, epochs: int, size: int, *, timed: bool) -> float:
    """Elements per second of processor time in the median epoch."""
    clock: list[float] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        flags = ["--streaming", "--until_idle", "--transport=local", "--tasks=1", f"--checkpoint={root}"]
        # Called in the job's thread, which does all the work.
        runner = SparkRunner(on_epoch=lambda _: clock.append(time.thread_time()))
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(flags))
        build(read(pipeline, epochs + WARM_UP, size, timed=timed))
        pipeline.run().wait_until_finish()
    used = [after - before for before, after in pairwise(clock[WARM_UP - 1 : WARM_UP + epochs])]
    return size / statistics.median(used)


def general_triggers() -> AbstractContextManager[object]:
    """All groupings take the path through Beam's general trigger driver."""
    return mock.patch("spark_jobs.beam_runner.keyed.grouped.fast_path", return_value=None)


def measure(spark: Any, epochs: int) -> Iterator[Figure]:
    peer = transform_with_state.rate(spark, epochs // 2, TRANSFORM_KEYS)
    for what, (build, target) in STATEFUL.items():
        goal = f">= {target:,}/s, 30 x" if target else ""
        ours = rate(build, epochs, SLICE, timed=False)
        against = ("transformWithState", peer) if target else ("", None)
        yield Figure("streaming", what, ours, "elements/s", goal, *against)
    for what, (build, target) in WINDOWED.items():
        ours = rate(build, epochs, SLICE, timed=True)
        general = None
        if target:
            with general_triggers():
                general = rate(build, 3, SMALL_SLICE, timed=True)
        goal = f">= {target:,}/s" if target else ""
        yield Figure("streaming", what, ours, "elements/s", goal, "general trigger driver", general)
