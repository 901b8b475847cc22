"""Panes of one key: processing-time triggers in batch and before the window's end, and the times that panes carry."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.coders import StrUtf8Coder, VarIntCoder
from apache_beam.coders.coders import IntervalWindowCoder, WindowedValueCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import trigger, window
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.trigger import AccumulationMode
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfoTiming, WindowedValue

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.keyed.grouping import PaneDriver

SECOND_US = 1_000_000
NOW_US = 1_700_000_000 * SECOND_US  # long after the windows of these tests, as in any backfill
WINDOW = window.IntervalWindow(0, 10)


def pane_driver(
    when: trigger.TriggerFn, mode: int, windows: window.WindowFn | None = None, combiner: int | None = None
) -> PaneDriver:
    windowing = Windowing(windows or window.FixedWindows(10), when, mode, combiner)
    coder = WindowedValueCoder(VarIntCoder(), windowing.windowfn.get_window_coder())
    return PaneDriver(windowing, StrUtf8Coder().get_impl(), VarIntCoder().get_impl(), coder)


def values(*some: int) -> list[WindowedValue]:
    return [WindowedValue(v, Timestamp(v), (WINDOW,)) for v in some]


@pytest.mark.parametrize("mode", [AccumulationMode.DISCARDING, AccumulationMode.ACCUMULATING])
@pytest.mark.parametrize(
    "when",
    [
        trigger.AfterProcessingTime(3600),
        trigger.Repeatedly(trigger.AfterProcessingTime(3600)),
        trigger.Repeatedly(trigger.AfterAny(trigger.AfterCount(10), trigger.AfterProcessingTime(5))),
    ],
    ids=["once", "repeatedly", "any"],
)
def test_in_a_batch_processing_time_reaches_its_end(when: trigger.TriggerFn, mode: int) -> None:
    panes, left = pane_driver(when, mode).run_key("k", None, values(1, 2, 3), MIN_US, MAX_US, NOW_US)
    assert [pane.value for pane in panes] == [("k", [1, 2, 3])]
    assert left is None


@pytest.mark.parametrize(
    ("when", "fired"),
    [
        (trigger.Repeatedly(trigger.AfterCount(5)), [("k", [1, 2, 3])]),
        (trigger._Never(), [("k", [1, 2, 3])]),
        (trigger.AfterCount(5), []),  # may lose data, and has to be allowed by name
    ],
    ids=["repeatedly", "never", "once"],
)
def test_in_a_batch_windows_close_with_what_is_left(when: trigger.TriggerFn, fired: list[object]) -> None:
    driver = pane_driver(when, AccumulationMode.ACCUMULATING)
    panes, left = driver.run_key("k", None, values(1, 2, 3), MIN_US, MAX_US, NOW_US)
    assert [pane.value for pane in panes] == fired
    assert all(pane.pane_info.is_last and pane.pane_info.timing == PaneInfoTiming.ON_TIME for pane in panes)
    assert left is None


@pytest.mark.parametrize(
    ("combiner", "at_us"),
    [
        (window.TimestampCombiner.OUTPUT_AT_EARLIEST, 1 * SECOND_US),
        (window.TimestampCombiner.OUTPUT_AT_LATEST, 3 * SECOND_US),
        (window.TimestampCombiner.OUTPUT_AT_EOW, window.GlobalWindow().max_timestamp().micros // 1000 * 1000),
    ],
    ids=["earliest", "latest", "end"],
)
@pytest.mark.parametrize(
    "when", [trigger.Always(), trigger.AfterCount(1), trigger._Never()], ids=["always", "one", "never"]
)
def test_in_a_batch_panes_of_the_global_window_have_the_combiners_time(
    when: trigger.TriggerFn, combiner: int, at_us: int
) -> None:
    """Beam's in-memory runner puts them at the beginning of time."""
    driver = pane_driver(when, AccumulationMode.DISCARDING, window.GlobalWindows(), combiner)
    some = [WindowedValue(v, Timestamp(v), (window.GlobalWindow(),)) for v in (2, 1, 3)]
    (pane,), left = driver.run_key("k", None, some, MIN_US, MAX_US, NOW_US)
    assert (pane.value, pane.timestamp.micros, left) == (("k", [2, 1, 3]), at_us, None)


@pytest.mark.parametrize("mode", [AccumulationMode.DISCARDING, AccumulationMode.ACCUMULATING])
def test_what_is_kept_of_a_window_does_not_grow_with_its_panes(mode: int) -> None:
    driver = pane_driver(trigger.Repeatedly(trigger.AfterCount(1)), mode)
    stored: bytes | None = None
    sizes = []
    for n in range(60):
        at_us = SECOND_US * (n - 70)
        ((pane,), stored) = driver.run_key("k", stored, values(7), at_us, at_us + SECOND_US, NOW_US)
        assert pane.pane_info.index == n
        assert stored is not None
        sizes.append(len(stored))
    kept = 0 if mode == AccumulationMode.DISCARDING else 50
    # An element takes 3 bytes; the rest are counts of more digits.
    assert sizes[59] - sizes[9] <= 3 * kept + 4


def test_an_early_pane_by_processing_time_leaves_the_pane_on_time() -> None:
    when = trigger.AfterWatermark(early=trigger.AfterProcessingTime(1))
    driver = pane_driver(when, AccumulationMode.ACCUMULATING)
    found = []
    stored: bytes | None = None
    steps = [  # elements, watermark before and after, processing time
        (values(1, 2), MIN_US, 1 * SECOND_US, NOW_US),
        ([], 1 * SECOND_US, 5 * SECOND_US, NOW_US + 5 * SECOND_US),
        ([], 5 * SECOND_US, 20 * SECOND_US, NOW_US + 6 * SECOND_US),
    ]
    for arrived, old_us, new_us, now_us in steps:
        panes, stored = driver.run_key("k", stored, arrived, old_us, new_us, now_us)
        found.append([(pane.value[1], pane.pane_info.timing) for pane in panes])
    assert found == [[], [([1, 2], PaneInfoTiming.EARLY)], [([1, 2], PaneInfoTiming.ON_TIME)]]


@pytest.mark.parametrize("new_us", [MAX_US, 20 * SECOND_US], ids=["batch", "stream"])
@pytest.mark.parametrize("start", [0, -20])
def test_a_pane_has_the_time_that_it_would_have_behind_a_coder(start: int, new_us: int) -> None:
    driver = pane_driver(trigger.AfterWatermark(), AccumulationMode.DISCARDING)
    here = window.IntervalWindow(start, start + 10)
    panes, _ = driver.run_key("k", None, [WindowedValue(1, Timestamp(start), (here,))], MIN_US, new_us, NOW_US)
    coder = WindowedValueCoder(VarIntCoder(), IntervalWindowCoder())
    behind = coder.decode(coder.encode(WindowedValue(1, here.max_timestamp(), (here,))))
    assert behind.timestamp != here.max_timestamp()
    assert [pane.timestamp for pane in panes] == [behind.timestamp]


def test_a_reshuffle_of_untyped_pairs_can_be_grouped() -> None:
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"])) as p:
        pairs = p | beam.Create([(1, 2), (1, 3)]) | beam.Map(lambda pair: window.TimestampedValue(pair, 0))
        grouped = pairs | beam.Reshuffle() | beam.GroupByKey() | beam.MapTuple(lambda k, vs: (k, sorted(vs)))
        assert_that(grouped, equal_to([(1, [2, 3])]))
