"""What the streams of the benchmarks read: one slice of elements an epoch, over ten seconds of event time.

For keyed state the elements of a slice are all of different keys, which come again in the next slice; for windows a key
comes ten times, five times a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms import window
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Timestamp

SECONDS_A_SLICE = 10


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
