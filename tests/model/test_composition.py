"""Streams joined and combined: Flatten, CoGroupByKey, Combine, tagged outputs. Programming guide, chapter 4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue

from tests.model.script import Script, at, step
from tests.model.stream import Stage, on_spark

FAST = [step(at(1, ("k", 1)), watermark=30), step(), step(), step()]
SLOW = [
    step(at(2, ("k", 20)), watermark=5),
    step(at(6, ("k", 60)), watermark=9),
    step(at(7, ("k", 70)), watermark=11),
    step(),
]


def test_a_flattened_stream_is_as_far_as_its_slowest_input(stage: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        both = (p | "fast" >> Script(FAST), p | "slow" >> Script(SLOW)) | beam.Flatten()
        stage.collect(both | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(2, ("k", [1, 20, 60, 70]), (0, 10), "ON_TIME")]


def test_the_partitions_of_a_source_are_as_far_as_the_slowest(whole: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script(FAST, SLOW) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.panes() == [(2, ("k", [1, 20, 60, 70]), (0, 10), "ON_TIME")]


def test_an_input_that_has_ended_holds_nothing(whole: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=5), step(at(2, ("k", 2)), watermark=12), step()]

    def build(p: beam.Pipeline) -> None:
        ended = p | "bounded" >> beam.Create([("k", 100)]) | beam.Map(lambda kv: TimestampedValue(kv, 3))
        both = (p | Script(script), ended) | beam.Flatten()
        whole.collect(both | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.panes() == [(1, ("k", [1, 2, 100]), (0, 10), "ON_TIME")]


def test_a_stream_flattened_with_itself_has_everything_twice(whole: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=5), step(at(2, ("k", 2)), watermark=12), step()]

    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(script)
        whole.collect((pairs, pairs) | beam.Flatten() | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.panes() == [(1, ("k", [1, 1, 2, 2]), (0, 10), "ON_TIME")]


@on_spark
def test_two_streams_are_joined_by_key_and_window(stage: Stage) -> None:
    clicks = [
        step(at(1, ("a", 1)), at(12, ("a", 2)), watermark=11),
        step(watermark=13),
        step(at(14, ("b", 3)), watermark=20),
        step(),
    ]
    views = [
        step(at(3, ("a", 30)), at(4, ("b", 40)), watermark=6),
        step(at(5, ("a", 50)), watermark=12),
        step(at(19, ("a", 190)), watermark=20),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        fixed = beam.WindowInto(FixedWindows(10))
        joined = {
            "clicks": p | "clicks" >> Script(clicks) | "clicks windowed" >> fixed,
            "views": p | "views" >> Script(views) | "views windowed" >> fixed,
        } | beam.CoGroupByKey()
        stage.collect(joined)

    stage.play(build)
    assert stage.panes() == [
        (1, ("a", {"clicks": [1], "views": [30, 50]}), (0, 10), "ON_TIME"),
        (1, ("b", {"clicks": [], "views": [40]}), (0, 10), "ON_TIME"),
        (2, ("a", {"clicks": [2], "views": [190]}), (10, 20), "ON_TIME"),
        (2, ("b", {"clicks": [3], "views": []}), (10, 20), "ON_TIME"),
    ]


SUMS = [
    step(at(1, ("a", 1)), at(2, ("a", 2)), at(3, ("b", 10)), at(12, ("a", 100)), watermark=5),
    step(at(4, ("a", 4)), at(5, ("b", 20)), watermark=10),
    step(at(13, ("b", 200)), watermark=20),
    step(),
]


@pytest.mark.parametrize("fanout", [None, 3])
def test_sums_per_key_and_window(stage: Stage, fanout: int | None) -> None:
    def build(p: beam.Pipeline) -> None:
        combine = beam.CombinePerKey(sum)
        windowed = p | Script(SUMS) | beam.WindowInto(FixedWindows(10))
        stage.collect(windowed | (combine if fanout is None else combine.with_hot_key_fanout(fanout)))

    stage.play(build)
    assert stage.panes() == [
        (1, ("a", 7), (0, 10), "ON_TIME"),
        (1, ("b", 30), (0, 10), "ON_TIME"),
        (2, ("a", 100), (10, 20), "ON_TIME"),
        (2, ("b", 200), (10, 20), "ON_TIME"),
    ]


@pytest.mark.parametrize("fanout", [None, 3])
def test_a_global_sum_per_window(whole: Stage, fanout: int | None) -> None:
    def build(p: beam.Pipeline) -> None:
        combine = beam.CombineGlobally(sum).without_defaults()
        values = p | Script(SUMS) | beam.WindowInto(FixedWindows(10)) | beam.Values()
        whole.collect(values | (combine if fanout is None else combine.with_fanout(fanout)))

    whole.play(build)
    assert whole.panes() == [(1, 37, (0, 10), "ON_TIME"), (2, 300, (10, 20), "ON_TIME")]


def test_an_element_counts_in_each_of_its_windows(stage: Stage) -> None:
    script = [step(at(7, ("a", 1)), at(8, ("a", 2)), watermark=9), step(at(11, ("a", 4)), watermark=12), step()]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(SlidingWindows(10, 5)) | beam.CombinePerKey(sum))

    stage.play(build)
    assert stage.panes() == [
        (1, ("a", 3), (0, 10), "ON_TIME"),
        (2, ("a", 7), (5, 15), "ON_TIME"),
        (2, ("a", 4), (10, 20), "ON_TIME"),
    ]


@pytest.mark.parametrize("fanout", [None, 2])
@pytest.mark.parametrize(
    ("mode", "sums"),
    [(AccumulationMode.ACCUMULATING, [1, 3, 7, 7]), (AccumulationMode.DISCARDING, [1, 2, 4, 0])],
    ids=["accumulating", "discarding"],
)
def test_early_sums(stage: Stage, mode: Any, sums: list[int], fanout: int | None) -> None:
    """A fan-out must not add up what its first half has already accumulated."""
    script = [step(at(1, ("a", n)), watermark=2) for n in (1, 2, 4)] + [step(watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = (
            p
            | Script(script)
            | beam.WindowInto(FixedWindows(10), trigger=AfterWatermark(early=AfterCount(1)), accumulation_mode=mode)
        )
        combine = beam.CombinePerKey(sum)
        stage.collect(windowed | (combine if fanout is None else combine.with_hot_key_fanout(fanout)))

    stage.play(build)
    fired = [(o.value[1], o.timing) for o in stage.outs()]
    if fanout is not None:
        # The first half's on-time pane is empty, but a pane: it makes the second half fire once more.
        fired.remove((sums[3], "EARLY"))
    assert fired == [*((s, "EARLY") for s in sums[:3]), (sums[3], "ON_TIME")]


def test_outputs_by_tag(whole: Stage) -> None:
    script = [step(at(1, ("a", 1)), at(2, ("a", 2)), watermark=5), step(at(3, ("b", 3)), watermark=10), step()]

    def split(pair: tuple[str, int]) -> Iterable[Any]:
        yield pair
        if pair[1] % 2:
            yield beam.pvalue.TaggedOutput("odd", pair)

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10))
        parts = windowed | beam.ParDo(split).with_outputs("odd", main="all")
        whole.collect(parts.odd | "sum" >> beam.CombinePerKey(sum), "odd")
        whole.collect(parts.all, "all")

    whole.play(build)
    assert whole.panes("odd") == [(1, ("a", 1), (0, 10), "ON_TIME"), (1, ("b", 3), (0, 10), "ON_TIME")]
    assert [(o.epoch, o.value) for o in whole.outs("all")] == [(0, ("a", 1)), (0, ("a", 2)), (1, ("b", 3))]


def test_what_is_not_grouped_does_not_wait(whole: Stage) -> None:
    script = [step(at(n, ("a", n))) for n in range(3)]

    def build(p: beam.Pipeline) -> None:
        doubled = p | Script(script) | beam.Reshuffle() | beam.MapTuple(lambda key, n: (key, n * 2))
        whole.collect(doubled)

    whole.play(build)
    assert [(o.epoch, o.value, o.at) for o in whole.outs()] == [(0, ("a", 0), 0), (1, ("a", 2), 1), (2, ("a", 4), 2)]
