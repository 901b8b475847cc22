"""Late data, timestamp combiners and the holds they put on the watermark. Streaming 102; programming guide 8.4, 9.4."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, Sessions, TimestampCombiner

from tests.model.script import Script, at, step
from tests.model.stream import Stage, end_of, on_spark

EARLIEST, LATEST, END = (
    TimestampCombiner.OUTPUT_AT_EARLIEST,
    TimestampCombiner.OUTPUT_AT_LATEST,
    TimestampCombiner.OUTPUT_AT_EOW,
)


def test_no_lateness_is_allowed_unless_asked_for(whole: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=12), step(at(2, ("k", 2)), watermark=13), step()]

    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script(script) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.values() == [("k", [1])]


def test_a_late_element_of_an_open_window_is_not_dropped(stage: Stage) -> None:
    """Late is behind the watermark; too late is behind the window's end and the lateness allowed."""
    script = [step(at(7, ("k", 1)), watermark=8), step(at(2, ("k", 2)), watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(1, ("k", [1, 2]), (0, 10), "ON_TIME")]


@pytest.mark.parametrize(
    ("watermark", "kept"),
    [
        (14, True),
        (15, False),
        (16, False),
    ],
)
def test_the_instant_at_which_a_window_expires(whole: Stage, watermark: int, kept: bool) -> None:
    """[0, 10) with lateness 5 is closed by a watermark of 15: it says that all before 15 has come."""
    script = [step(at(1, ("k", 1)), watermark=watermark), step(at(2, ("k", 2))), step()]

    def build(p: beam.Pipeline) -> None:
        stage = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        whole.collect(stage | beam.GroupByKey())

    whole.play(build)
    assert whole.values() == [("k", [1]), *([("k", [2])] if kept else [])]


@on_spark
def test_lateness_is_per_window_of_the_element(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=16),
        step(at(8, ("k", 2)), at(17, ("k", 3)), at(12, ("k", 4)), watermark=20),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        stage.collect(windowed | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(0, ("k", [1]), (0, 10), "ON_TIME"), (1, ("k", [3, 4]), (10, 20), "ON_TIME")]


def test_a_key_that_is_first_seen_late_has_a_late_pane(stage: Stage) -> None:
    script = [step(at(1, ("a", 1)), watermark=11), step(at(2, ("b", 2)), watermark=12), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        stage.collect(windowed | beam.GroupByKey())

    stage.play(build)
    assert [(o.epoch, o.value, o.timing, o.first) for o in stage.outs()] == [
        (0, ("a", [1]), "ON_TIME", True),
        (1, ("b", [2]), "LATE", True),
    ]


@pytest.mark.parametrize("kind", ["grouping", "state"])
def test_dropped_elements_are_counted(stage: Stage, kind: str) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=16),
        step(at(8, ("k", 2)), at(9, ("other", 3)), at(17, ("k", 4)), watermark=20),
        step(),
    ]

    class Remember(beam.DoFn):
        SEEN = beam.transforms.userstate.BagStateSpec("seen", beam.coders.VarIntCoder())

        def process(self, pair: tuple[str, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
            seen.add(pair[1])

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        _ = windowed | (beam.GroupByKey() if kind == "grouping" else beam.ParDo(Remember()))

    stage.play(build)
    dropped = [
        c.committed
        for c in stage.result.metrics().query()["counters"]
        if (c.key.metric.namespace, c.key.metric.name) == ("beam_runner", "droppedDueToLateness")
    ]
    assert sum(dropped) == 2


@pytest.mark.parametrize(("combiner", "time"), [(EARLIEST, 2), (LATEST, 7), (END, end_of(10))], ids=str)
def test_the_time_of_a_pane(whole: Stage, combiner: Any, time: float) -> None:
    script = [step(at(5, ("k", 1)), at(2, ("k", 2))), step(at(7, ("k", 3)), watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), timestamp_combiner=combiner)
        whole.collect(windowed | beam.GroupByKey())

    whole.play(build)
    assert [(o.epoch, o.value, o.at) for o in whole.outs()] == [(1, ("k", [1, 2, 3]), time)]


@pytest.mark.parametrize(("combiner", "window"), [(EARLIEST, (2, 4)), (LATEST, (6, 8)), (END, (8, 10))], ids=str)
def test_a_pane_is_never_late_downstream(stage: Stage, combiner: Any, window: tuple[float, float]) -> None:
    """The hold is real: the output watermark waits for the pane's time, although the input's goes on."""
    script = [
        step(at(3, ("k", 1)), at(7, ("k", 2)), watermark=5),
        step(watermark=8.5),
        step(watermark=10),
        step(watermark=30),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        tens = beam.WindowInto(FixedWindows(10), timestamp_combiner=combiner)
        grouped = p | Script(script) | "tens" >> tens | "tens grouped" >> beam.GroupByKey()
        counted = grouped | beam.MapTuple(lambda key, values: (key, len(list(values))))
        again = counted | "twos" >> beam.WindowInto(FixedWindows(2)) | "twos grouped" >> beam.GroupByKey()
        stage.collect(again)

    stage.play(build)
    assert stage.panes() == [(2, ("k", [2]), window, "ON_TIME")]


def test_a_late_element_does_not_pull_a_pane_behind_the_watermark(stage: Stage) -> None:
    """Elements behind the output watermark put no hold: the pane keeps the time of the elements before it."""
    script = [step(at(7, ("k", 1)), watermark=5), step(at(2, ("k", 2)), watermark=6), step(watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        tens = beam.WindowInto(FixedWindows(10), timestamp_combiner=EARLIEST)
        grouped = p | Script(script) | "tens" >> tens | "tens grouped" >> beam.CombinePerKey(sum)
        stage.collect(grouped, "tens")
        stage.collect(grouped | "twos" >> beam.WindowInto(FixedWindows(2)) | "twos grouped" >> beam.GroupByKey())

    stage.play(build)
    assert [(o.value, o.at) for o in stage.outs("tens")] == [(("k", 3), 7)]
    assert stage.panes() == [(2, ("k", [3]), (6, 8), "ON_TIME")]


def test_late_elements_of_a_bundle_do_not_touch_its_on_time_ones(whole: Stage) -> None:
    """Combining before the shuffle must not give a bundle's elements one time."""
    script = [step(watermark=8), step(at(1, ("k", 2)), at(9, ("k", 4)), watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        tens = beam.WindowInto(FixedWindows(10), timestamp_combiner=EARLIEST)
        whole.collect(p | Script(script) | tens | beam.CombinePerKey(sum))

    whole.play(build)
    assert [(o.epoch, o.value, o.at, o.timing) for o in whole.outs()] == [(1, ("k", 6), 9, "ON_TIME")]


def test_early_panes_hold_the_watermark_for_the_panes_after_them(stage: Stage) -> None:
    script = [
        step(at(3, ("k", 1)), watermark=4),
        step(at(5, ("k", 2)), watermark=8),
        step(watermark=10),
        step(watermark=30),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        tens = beam.WindowInto(
            FixedWindows(10),
            trigger=AfterWatermark(early=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            timestamp_combiner=EARLIEST,
        )
        grouped = p | Script(script) | "tens" >> tens | "tens grouped" >> beam.GroupByKey()
        summed = grouped | beam.MapTuple(lambda key, values: (key, sum(values)))
        twos = beam.WindowInto(FixedWindows(2), trigger=AfterWatermark(), accumulation_mode=AccumulationMode.DISCARDING)
        stage.collect(summed | "twos" >> twos | "twos grouped" >> beam.GroupByKey())

    stage.play(build)
    seen = sorted(value for o in stage.outs() for value in o.value[1])
    assert [v for v in seen if v] == [1, 2]
    assert {o.timing for o in stage.outs()} == {"ON_TIME"}


@on_spark
def test_sessions_hold_the_watermark_while_they_grow(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=4),
        step(at(5, ("k", 2)), watermark=8),
        step(at(9, ("k", 3)), watermark=12),
        step(watermark=30),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        sessions = beam.WindowInto(Sessions(5), timestamp_combiner=EARLIEST)
        summed = p | Script(script) | "sessions" >> sessions | "sessions grouped" >> beam.CombinePerKey(sum)
        stage.collect(summed, "sessions")
        stage.collect(summed | "twos" >> beam.WindowInto(FixedWindows(2)) | "twos grouped" >> beam.GroupByKey())

    stage.play(build)
    assert [(o.epoch, o.value, o.window, o.at) for o in stage.outs("sessions")] == [(3, ("k", 6), (1, 14), 1)]
    assert stage.panes() == [(3, ("k", [6]), (0, 2), "ON_TIME")]
