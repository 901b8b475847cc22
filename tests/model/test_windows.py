"""Windows: what each WindowFn assigns, and when the default trigger fires. Programming guide, chapter 8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import Coder
from apache_beam.coders.coders import IntervalWindowCoder
from apache_beam.transforms.window import (
    BoundedWindow,
    FixedWindows,
    GlobalWindow,
    IntervalWindow,
    NonMergingWindowFn,
    Sessions,
    SlidingWindows,
    WindowFn,
)
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from tests.model.script import Script, at, step
from tests.model.stream import Stage, end_of, on_spark


def test_fixed_windows_fire_once_when_the_watermark_passes_their_end(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), at(11, ("k", 2)), watermark=5),
        step(at(9, ("k", 3)), watermark=10),
        step(at(12, ("k", 4)), watermark=19),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [
        (1, ("k", [1, 3]), (0, 10), "ON_TIME"),
        (3, ("k", [2, 4]), (10, 20), "ON_TIME"),
    ]
    assert [o.at for o in stage.outs()] == [end_of(10), end_of(20)]


def test_an_offset_moves_fixed_windows(whole: Stage) -> None:
    script = [step(at(2, ("k", 1)), at(3, ("k", 2)), watermark=3), step()]

    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script(script) | beam.WindowInto(FixedWindows(10, offset=3)) | beam.GroupByKey())

    whole.play(build)
    assert whole.panes() == [(0, ("k", [1]), (-7, 3), "ON_TIME"), (1, ("k", [2]), (3, 13), "ON_TIME")]


def test_an_element_is_in_each_sliding_window_that_covers_it(stage: Stage) -> None:
    script = [
        step(at(7, ("k", 1)), watermark=9),
        step(at(12, ("k", 2)), watermark=10),
        step(watermark=15),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(SlidingWindows(10, 5)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [
        (1, ("k", [1]), (0, 10), "ON_TIME"),
        (2, ("k", [1, 2]), (5, 15), "ON_TIME"),
        (3, ("k", [2]), (10, 20), "ON_TIME"),
    ]


@on_spark
def test_sessions_merge_across_epochs_and_not_across_keys(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), at(4, ("k", 2)), at(3, ("other", 9)), watermark=8),  # k: [1, 9), other: [3, 8)
        step(at(10, ("k", 3)), at(18, ("k", 4)), watermark=9),  # k: [10, 15) and [18, 23)
        step(at(14, ("k", 5)), watermark=15),  # the bridge: [10, 23)
        step(watermark=23),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(Sessions(5)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [
        (0, ("other", [9]), (3, 8), "ON_TIME"),
        (1, ("k", [1, 2]), (1, 9), "ON_TIME"),
        (3, ("k", [3, 4, 5]), (10, 23), "ON_TIME"),
    ]


class Adjoining(WindowFn):
    """Ten-second blocks; blocks that touch are one window. A merging WindowFn that Beam does not have."""

    def assign(self, context: WindowFn.AssignContext) -> list[IntervalWindow]:
        start = int(context.timestamp.micros // 10_000_000 * 10)
        return [IntervalWindow(start, start + 10)]

    def merge(self, context: WindowFn.MergeContext) -> None:
        run: list[IntervalWindow] = []
        for window in sorted(context.windows, key=lambda w: w.start):
            if run and window.start > max(w.end for w in run):
                self._merge(context, run)
                run = []
            run.append(window)
        self._merge(context, run)

    @staticmethod
    def _merge(context: WindowFn.MergeContext, run: list[IntervalWindow]) -> None:
        if len(run) > 1:
            context.merge(run, IntervalWindow(run[0].start, max(w.end for w in run)))

    def get_window_coder(self) -> IntervalWindowCoder:
        return IntervalWindowCoder()


def test_a_merging_window_fn_of_ones_own(stage: Stage) -> None:
    script = [
        step(at(3, ("k", 1)), at(35, ("k", 4)), watermark=9),
        step(at(12, ("k", 2)), watermark=12),  # [0, 10) was open: it grows to [0, 20)
        step(at(14, ("k", 3)), watermark=20),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(Adjoining()) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(2, ("k", [1, 2, 3]), (0, 20), "ON_TIME"), (3, ("k", [4]), (30, 40), "ON_TIME")]


class Shift(BoundedWindow):
    """A window with a name: not an interval."""

    def __init__(self, name: str, end: int) -> None:
        super().__init__(end)
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shift) and (self.name, self.end) == (other.name, other.end)

    def __hash__(self) -> int:
        return hash((self.name, self.end))


class ShiftCoder(Coder):
    def encode(self, value: Shift) -> bytes:
        return f"{value.end.micros // 1_000_000} {value.name}".encode()

    def decode(self, encoded: bytes) -> Shift:
        end, name = encoded.decode().split(" ", 1)
        return Shift(name, int(end))

    def is_deterministic(self) -> bool:
        return True


class Shifts(NonMergingWindowFn):
    """Twelve seconds, the first eight of which are the day."""

    def assign(self, context: WindowFn.AssignContext) -> list[Shift]:
        second = context.timestamp.micros // 1_000_000
        start = second // 12 * 12
        return [Shift("day", start + 8) if second < start + 8 else Shift("night", start + 12)]

    def get_window_coder(self) -> ShiftCoder:
        return ShiftCoder()


def test_windows_need_not_be_intervals(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), at(9, ("k", 2)), at(13, ("k", 3)), watermark=8),
        step(at(10, ("k", 4)), watermark=12),
        step(),
    ]

    def named(pair: tuple[str, Iterable[int]], window: Any = beam.DoFn.WindowParam) -> tuple[str, list[int]]:
        return window.name, sorted(pair[1])

    def build(p: beam.Pipeline) -> None:
        grouped = p | Script(script) | beam.WindowInto(Shifts()) | beam.GroupByKey()
        stage.collect(grouped | beam.Map(named))

    stage.play(build)
    assert [(o.epoch, o.value, o.at) for o in stage.outs()] == [
        (0, ("day", [1]), end_of(8)),
        (1, ("night", [2, 4]), end_of(12)),
        (2, ("day", [3]), end_of(20)),
    ]


def test_elements_at_the_end_of_time_are_in_one_session(whole: Stage) -> None:
    """Their window is cut to no length."""
    end: Any = MAX_TIMESTAMP
    script = [step(at(end, ("k", 1)), at(1, ("k", 3))), step(at(end, ("k", 2)))]

    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script(script) | beam.WindowInto(Sessions(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.values() == [("k", [3]), ("k", [1, 2])]


def test_the_global_window_ends_with_the_stream_only(stage: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=10**6), step(at(2, ("k", 2)), watermark=10**7), step()]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.GroupByKey())

    # Beam asks for a trigger here, because the default one "never fires" on an unbounded global window.
    stage.play(build, "--allow_unsafe_triggers")
    (out,) = stage.outs()
    assert (out.epoch, out.value, out.timing) == (2, ("k", [1, 2]), "ON_TIME")
    assert out.at == GlobalWindow().max_timestamp().micros // 1000 / 1e3


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_pane_of_the_global_window_is_at_its_end_in_any_number_of_epochs(whole: Stage, epochs: int) -> None:
    script = [step(at(1, ("k", 1)), at(2, ("k", 2))), step()][:epochs]

    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script(script) | beam.GroupByKey())

    whole.play(build, "--allow_unsafe_triggers")
    assert [(o.value, o.at) for o in whole.outs()] == [
        (("k", [1, 2]), GlobalWindow().max_timestamp().micros // 1000 / 1e3)
    ]


def test_a_stream_that_does_not_end_leaves_the_global_window_open(whole: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        whole.collect(p | Script([step(at(1, ("k", 1)), watermark=10**6)], stays=True) | beam.GroupByKey())

    whole.play(build, "--allow_unsafe_triggers")
    assert whole.outs() == []


def test_panes_can_be_windowed_and_grouped_again(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), at(11, ("k", 2)), watermark=10),
        step(at(12, ("k", 3)), watermark=19),
        step(at(25, ("k", 4)), watermark=20),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        tens = p | Script(script) | "tens" >> beam.WindowInto(FixedWindows(10)) | "add" >> beam.CombinePerKey(sum)
        stage.collect(tens, "tens")
        stage.collect(tens | "twenties" >> beam.WindowInto(FixedWindows(20)) | "group" >> beam.GroupByKey(), "twenties")

    stage.play(build)
    assert stage.panes("tens") == [
        (0, ("k", 1), (0, 10), "ON_TIME"),
        (2, ("k", 5), (10, 20), "ON_TIME"),
        (3, ("k", 4), (20, 30), "ON_TIME"),
    ]
    assert stage.panes("twenties") == [
        (2, ("k", [1, 5]), (0, 20), "ON_TIME"),
        (3, ("k", [4]), (20, 40), "ON_TIME"),
    ]


def test_windows_survive_a_reshuffle(whole: Stage) -> None:
    script = [step(at(1, ("k", 1)), at(11, ("k", 2)), watermark=5), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10))
        whole.collect(windowed | beam.Reshuffle())

    whole.play(build)
    assert [(o.epoch, o.value, o.at, o.window) for o in whole.outs()] == [
        (0, ("k", 1), 1, (0, 10)),
        (0, ("k", 2), 11, (10, 20)),
    ]
