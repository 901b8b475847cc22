"""Keyed state, windows and sessions in a stream, on one core without Spark, against Beam's general trigger driver.

Each epoch brings `SLICE` elements of as many seconds of event time as it has thousands; the rate is that of the median
epoch after the first ones, and counts everything in it: making the elements, state files, manifest.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
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

from benchmarks.runner.measure import Figure
from spark_jobs.beam_runner import SparkRunner

SLICE, SECONDS_A_SLICE, KEYS, WARM_UP = 50_000, 10, 50_000, 2


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


def elements(number: int) -> Iterator[Any]:
    """(key, value) at its event time; the keys of a slice are all different, in an order that looks random."""
    step = SECONDS_A_SLICE / SLICE
    for index in range(SLICE):
        at = number * SECONDS_A_SLICE + index * step
        yield window.TimestampedValue(((number * SLICE + index) * 7919 % KEYS, index & 127), at)


def read(pipeline: Any, count: int) -> Any:
    return (
        pipeline
        | beam.Create([0])
        | beam.ParDo(slices(count)).with_output_types(int)
        | beam.FlatMap(elements).with_output_types(tuple[int, int])
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
SCENARIOS: dict[str, tuple[Build, int]] = {
    "source alone": (lambda events: events | beam.Map(lambda _: None), 0),
    "stateful sum, value state": (lambda events: events | beam.ParDo(ValueSum()), 60_000),
    "stateful sum, combining state": (lambda events: events | beam.ParDo(CombiningSum()), 60_000),
    "fixed windows, GroupByKey": (lambda events: events | beam.WindowInto(FIXED) | beam.GroupByKey(), 60_000),
    "fixed windows, CombinePerKey": (lambda events: events | beam.WindowInto(FIXED) | beam.CombinePerKey(sum), 60_000),
    "sessions, GroupByKey": (lambda events: events | beam.WindowInto(SESSIONS) | beam.GroupByKey(), 20_000),
}


def rate(build: Build, epochs: int) -> float:
    """Elements per second of the median epoch."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as root:
        flags = ["--streaming", "--until_idle", "--transport=local", "--tasks=1", f"--checkpoint={root}"]
        runner = SparkRunner(on_epoch=lambda info: seconds.append(info.seconds))
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(flags))
        build(read(pipeline, epochs + WARM_UP))
        pipeline.run().wait_until_finish()
    return SLICE / statistics.median(seconds[WARM_UP : WARM_UP + epochs])


def general_triggers() -> AbstractContextManager[object]:
    """All groupings take the path through Beam's general trigger driver."""
    return mock.patch("spark_jobs.beam_runner.grouped.fast_path", return_value=None)


def measure(epochs: int) -> Iterator[Figure]:
    for what, (build, target) in SCENARIOS.items():
        ours = rate(build, epochs)
        windowed = "windows" in what or "sessions" in what
        with general_triggers() if windowed else nullcontext():
            peer = rate(build, max(2, epochs // 3)) if windowed else None
        goal = f">= {target:,}/s" if target else ""
        yield Figure("streaming", what, ours, "elements/s", goal, "general trigger driver", peer)
