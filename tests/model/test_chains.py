"""Keyed steps behind keyed steps: what one emits, at whatever time of an epoch, the next must get on time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.pvalue import AsDict, AsList
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.userstate import CombiningValueStateSpec
from apache_beam.transforms.window import FixedWindows, Sessions, SlidingWindows

from tests.model.dofns import AtTheEnd
from tests.model.script import Script, at, step
from tests.model.stream import Stage, on_spark

Pair = tuple[str, int]


class Total(beam.DoFn):
    """(key, sum of the key's values so far in this window)"""

    SUM = CombiningValueStateSpec("sum", sum)

    def process(self, pair: Pair, total: Any = beam.DoFn.StateParam(SUM)) -> Iterator[Pair]:
        total.add(pair[1])
        yield pair[0], total.read()


SCRIPT = [
    step(at(1, ("a", 1)), at(2, ("b", 10)), watermark=4),
    step(at(5, ("a", 2)), at(12, ("b", 20)), watermark=11),
    step(at(13, ("a", 4)), at(26, ("b", 40)), watermark=25),
    step(at(27, ("a", 8))),
]


def test_state_in_each_sliding_window_of_an_element(stage: Stage) -> None:
    script = [step(at(7, ("a", 1)), watermark=4), step(at(12, ("a", 2)), watermark=8), step()]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(SlidingWindows(10, 5)) | beam.ParDo(Total()))

    stage.play(build)
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (0, ("a", 1), (0, 10)),
        (0, ("a", 1), (5, 15)),
        (1, ("a", 3), (5, 15)),
        (1, ("a", 2), (10, 20)),
    ]


def test_panes_into_state(stage: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        sums = p | Script(SCRIPT) | "tens" >> beam.WindowInto(FixedWindows(10)) | "sum" >> beam.CombinePerKey(sum)
        stage.collect(sums | "all" >> beam.WindowInto(FixedWindows(1000)) | "total" >> beam.ParDo(Total()))

    stage.play(build)
    assert [(o.epoch, o.value) for o in stage.outs()] == [
        (1, ("a", 3)),
        (1, ("b", 10)),
        (2, ("a", 7)),
        (2, ("b", 30)),
        (3, ("a", 15)),
        (3, ("b", 70)),
    ]


@on_spark
def test_timers_into_panes_into_timers(stage: Stage) -> None:
    """Four keyed steps deep, all of a window settles in the epoch whose watermark closes it."""

    def build(p: beam.Pipeline) -> None:
        first = p | Script(SCRIPT) | "tens" >> beam.WindowInto(FixedWindows(10))
        ended = first | "first end" >> beam.ParDo(AtTheEnd()).with_output_types(Pair)
        summed = ended | "regroup" >> beam.CombinePerKey(sum)
        again = summed | "second end" >> beam.ParDo(AtTheEnd()).with_output_types(Pair)
        stage.collect(again | "all keys" >> beam.Map(lambda kv: ("all", kv[1])) | "total" >> beam.CombinePerKey(sum))

    stage.play(build)
    assert stage.panes() == [
        (1, ("all", 13), (0, 10), "ON_TIME"),
        (2, ("all", 24), (10, 20), "ON_TIME"),
        (3, ("all", 48), (20, 30), "ON_TIME"),
    ]


def test_a_flattened_stream_into_timers(stage: Stage) -> None:
    other = [step(at(3, ("a", 100)), watermark=30), step(), step(), step()]

    def build(p: beam.Pipeline) -> None:
        both = (p | "one" >> Script(SCRIPT), p | "two" >> Script(other)) | beam.Flatten()
        ended = both | beam.WindowInto(FixedWindows(10)) | beam.ParDo(AtTheEnd()).with_output_types(Pair)
        stage.collect(ended)

    stage.play(build)
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (1, ("a", 103), (0, 10)),
        (1, ("b", 10), (0, 10)),
        (2, ("a", 4), (10, 20)),
        (2, ("b", 20), (10, 20)),
        (3, ("a", 8), (20, 30)),
        (3, ("b", 40), (20, 30)),
    ]


def test_sessions_of_sums(stage: Stage) -> None:
    """Merging windows behind fixed ones: a pane's time is its window's end, so neighbours are one session."""

    def build(p: beam.Pipeline) -> None:
        sums = p | Script(SCRIPT) | "tens" >> beam.WindowInto(FixedWindows(10)) | "sum" >> beam.CombinePerKey(sum)
        stage.collect(sums | "sessions" >> beam.WindowInto(Sessions(10.5)) | "group" >> beam.GroupByKey())

    stage.play(build)
    assert [(o.epoch, o.value) for o in stage.outs()] == [(3, ("a", [3, 4, 8])), (3, ("b", [10, 20, 40]))]


def test_a_stateful_dofn_with_a_side_input(stage: Stage) -> None:
    class Weighted(beam.DoFn):
        SUM = CombiningValueStateSpec("sum", sum)

        def process(
            self, pair: Pair, weights: dict[str, int], total: Any = beam.DoFn.StateParam(SUM)
        ) -> Iterator[Pair]:
            total.add(pair[1] * weights[pair[0]])
            yield pair[0], total.read()

    def build(p: beam.Pipeline) -> None:
        weights = p | "weights" >> beam.Create([("a", 1), ("b", 3)])
        stage.collect(p | Script(SCRIPT) | beam.ParDo(Weighted(), AsDict(weights)))

    stage.play(build)
    assert stage.keyed() == [("a", 1), ("a", 3), ("a", 7), ("a", 15), ("b", 30), ("b", 90), ("b", 210)]


class _Three(RestrictionProvider):
    def initial_restriction(self, element: str) -> OffsetRange:
        return OffsetRange(0, 3)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: str, restriction: OffsetRange) -> int:
        return 1


def test_a_source_with_a_side_input(stage: Stage) -> None:
    """What is left of a restriction has the side input in later epochs and after a restart."""

    class Named(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self, prefix: str, names: list[str], tracker: Any = beam.DoFn.RestrictionParam(_Three())
        ) -> Iterator[str]:
            index = tracker.current_restriction().start
            if tracker.try_claim(index):
                yield f"{prefix} {sorted(names)[index]}"
                if index < 2:
                    tracker.defer_remainder()

    def build(p: beam.Pipeline) -> None:
        names = p | "names" >> beam.Create(["x", "y", "z"])
        stage.collect(p | beam.Create(["p"]) | "read" >> beam.ParDo(Named(), AsList(names)))

    stage.play(build)
    assert [(o.epoch, o.value) for o in stage.outs()] == [(0, "p x"), (1, "p y"), (2, "p z")]


def test_one_stream_into_many_branches(stage: Stage) -> None:
    """Branches with levels of their own: none runs ahead of, or behind, its own watermark."""

    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(SCRIPT)
        tens = pairs | "tens" >> beam.WindowInto(FixedWindows(10))
        stage.collect(pairs, "raw")
        stage.collect(tens | "grouped" >> beam.CombinePerKey(sum), "sums")
        stage.collect(tens | "ended" >> beam.ParDo(AtTheEnd()).with_output_types(Pair), "ends")
        deep = (
            tens | "deep sum" >> beam.CombinePerKey(sum) | "deep end" >> beam.ParDo(AtTheEnd()).with_output_types(Pair)
        )
        merged = (deep, tens | "shallow" >> beam.CombinePerKey(sum)) | beam.Flatten()
        stage.collect(merged | "merge" >> beam.GroupByKey(), "merged")

    stage.play(build)
    assert len(stage.outs("raw")) == 7
    expected = [
        (1, ("a", 3), (0, 10)),
        (1, ("b", 10), (0, 10)),
        (2, ("a", 4), (10, 20)),
        (2, ("b", 20), (10, 20)),
        (3, ("a", 8), (20, 30)),
        (3, ("b", 40), (20, 30)),
    ]
    assert [(o.epoch, o.value, o.window) for o in stage.outs("sums")] == expected
    assert [(o.epoch, o.value, o.window) for o in stage.outs("ends")] == expected
    assert [(o.epoch, o.value, o.window, o.timing) for o in stage.outs("merged")] == [
        (epoch, (key, [total, total]), window, "ON_TIME") for epoch, (key, total), window in expected
    ]
