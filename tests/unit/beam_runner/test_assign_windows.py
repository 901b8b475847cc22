"""WindowInto on whole microseconds gives the windows that Beam's window functions give."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner import SparkRunner

TIMES = [-10.5, -7, -0.001, 0, 0.001, 2.999, 3, 6.999, 7, 10, 86_400.25]


def seen(_: Any, at: Any = beam.DoFn.TimestampParam, mine: Any = beam.DoFn.WindowParam) -> tuple[int, int, int]:
    return at.micros, mine.start.micros, mine.end.micros


def expected(windowfn: Any, times: list[float]) -> list[tuple[int, int, int]]:
    result = []
    for at in map(Timestamp.of, times):
        (mine,) = windowfn.assign(window.WindowFn.AssignContext(at))
        result.append((at.micros, mine.start.micros, mine.end.micros))
    return result


@pytest.mark.parametrize(
    "windowfn",
    [window.FixedWindows(3), window.FixedWindows(7, offset=2), window.FixedWindows(0.25), window.Sessions(2.5)],
    ids=str,
)
def test_windows_are_beams(windowfn: Any) -> None:
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"])) as pipeline:
        windows = (
            pipeline
            | beam.Create(TIMES)
            | beam.Map(lambda at: window.TimestampedValue(at, at))
            | beam.WindowInto(windowfn)
            | beam.Reshuffle()
            | beam.Map(seen)
        )
        assert_that(windows, equal_to(expected(windowfn, TIMES)))


def test_an_element_in_two_windows_is_assigned_twice() -> None:
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"])) as pipeline:
        windows = (
            pipeline
            | beam.Create([11])
            | beam.Map(lambda at: window.TimestampedValue(at, at))
            | "twice" >> beam.WindowInto(window.SlidingWindows(10, 5))
            | "fixed" >> beam.WindowInto(window.FixedWindows(10))
            | beam.Map(seen)
        )
        assert_that(windows, equal_to(expected(window.FixedWindows(10), [11, 11])))
