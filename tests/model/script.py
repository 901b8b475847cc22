"""A source that plays a script: one step an epoch, so that a test says when each element and watermark arrives.

    Script([step(at(1, ("k", 1)), watermark=5), step(at(7, ("k", 2)), watermark=10), step()])

A step's elements are emitted, then the watermark is advanced, then the source defers the rest to the next epoch. After
the last step the restriction is done and the watermark goes to the end of time in that same epoch. With `stays=True`
the source asks to be left alone instead, and the watermark stays where the script left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

_WITHOUT_END = 2**62
_IDLE_S = 0.05


@dataclass(frozen=True)
class Step:
    """What one partition does in one epoch. Times are event times in seconds."""

    elements: tuple[tuple[float, Any], ...] = ()
    watermark: float | None = None
    pause_s: float = 0.0  # processing time before the next step, at least


def at(second: float, value: Any) -> tuple[float, Any]:
    return second, value


def step(*elements: tuple[float, Any], watermark: float | None = None, pause_s: float = 0.0) -> Step:
    """Elements first, then the watermark; without either the epoch brings nothing."""
    return Step(elements, watermark, pause_s)


class _Lines(RestrictionProvider):
    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, self.lengths[element])

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, element: int, restriction: OffsetRange) -> None:
        return None


def _player(scripts: list[list[Step]], *, stays: bool) -> beam.DoFn:
    provider = _Lines([_WITHOUT_END if stays else len(steps) for steps in scripts])

    class Play(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self,
            part: int,
            tracker: Any = beam.DoFn.RestrictionParam(provider),
            watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
        ) -> Iterator[Any]:
            index = tracker.current_restriction().start
            if index >= len(scripts[part]):
                tracker.defer_remainder(Duration(_IDLE_S))
                return
            if not tracker.try_claim(index):
                return
            line = scripts[part][index]
            for second, value in line.elements:
                yield TimestampedValue(value, second)
            if line.watermark is not None:
                watermark.set_watermark(Timestamp(line.watermark))
            if stays or index + 1 < len(scripts[part]):
                tracker.defer_remainder(Duration(line.pause_s) if line.pause_s else None)

    return Play()


class Script(beam.PTransform):
    """-> unbounded PCollection of the script's values. Several scripts are partitions of one source.

    `element_type`: for coders; the default is a (str, int) pair.
    """

    def __init__(self, *scripts: list[Step], stays: bool = False, element_type: Any = tuple[str, int]) -> None:
        super().__init__()
        self._scripts, self._stays, self._type = [list(s) for s in scripts], stays, element_type

    def expand(self, pbegin: Any) -> Any:
        return (
            pbegin
            | "partitions" >> beam.Create(list(range(len(self._scripts))))
            | "play" >> beam.ParDo(_player(self._scripts, stays=self._stays)).with_output_types(self._type)
        )
