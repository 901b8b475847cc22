"""Timers of stateful DoFns. Programming guide, chapter 11.3 to 11.5."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.checkpoint.progress import last_manifest
from spark_jobs.beam_runner.errors import RunnerError
from spark_jobs.beam_runner.keyed import timers
from tests.model.dofns import AtTheEnd
from tests.model.script import Script, Step, at, step
from tests.model.stream import Build, Stage, on_spark

Pair = tuple[str, int]


def timed(stage: Stage, script: list[Step], dofn: beam.DoFn, window: Any = None, *, stays: bool = False) -> Build:
    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(script, stays=stays)
        if window is not None:
            pairs = pairs | beam.WindowInto(window)
        stage.collect(pairs | "timed" >> beam.ParDo(dofn).with_output_types(Pair))

    return build


class Alarm(beam.DoFn):
    """A pair (key, second) sets the timer to that second; a negative second clears it."""

    RING = TimerSpec("ring", TimeDomain.WATERMARK)

    def process(self, pair: Pair, ring: Any = beam.DoFn.TimerParam(RING)) -> None:
        if pair[1] < 0:
            ring.clear()
        else:
            ring.set(pair[1])

    @on_timer(RING)
    def rang(self, key: Any = beam.DoFn.KeyParam, when: Any = beam.DoFn.TimestampParam) -> Iterator[Pair]:
        yield key, int(when)


def test_an_event_time_timer_fires_when_the_watermark_passes_it(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 15)), at(2, ("b", 25)), watermark=3),
        step(watermark=14),
        step(watermark=16),
        step(watermark=24),
        step(),
    ]
    stage.play(timed(stage, script, Alarm()))
    assert [(o.epoch, o.value, o.at) for o in stage.outs()] == [(2, ("a", 15), 15), (4, ("b", 25), 25)]


def test_a_timer_that_is_set_again_moves(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 10)), at(1, ("b", 10)), watermark=3),
        step(at(4, ("a", 20)), at(4, ("b", 7)), watermark=8),
        step(watermark=12),
        step(watermark=21),
        step(),
    ]
    stage.play(timed(stage, script, Alarm()))
    assert [(o.epoch, o.value) for o in stage.outs()] == [(1, ("b", 7)), (3, ("a", 20))]


def test_a_cleared_timer_does_not_fire(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 10)), at(1, ("b", 10)), watermark=3),
        step(at(4, ("a", -1)), watermark=5),
        step(watermark=12),
        step(at(13, ("a", 20))),
        step(),
    ]
    stage.play(timed(stage, script, Alarm()))
    assert [(o.epoch, o.value) for o in stage.outs()] == [(2, ("b", 10)), (4, ("a", 20))]


def test_set_and_clear_in_one_bundle(whole: Stage) -> None:
    script = [step(at(1, ("a", 10)), at(1, ("a", -1)), at(1, ("b", -1)), at(1, ("b", 10))), step()]
    whole.play(timed(whole, script, Alarm()))
    assert whole.values() == [("b", 10)]


def test_a_timer_in_the_past_fires_at_once(stage: Stage) -> None:
    script = [step(at(50, ("a", 100)), watermark=40), step(at(45, ("b", 20)), watermark=41), step(watermark=42), step()]
    stage.play(timed(stage, script, Alarm()))
    assert [(o.epoch, o.value[0]) for o in stage.outs()] == [(1, "b"), (3, "a")]


def test_timers_are_per_window(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 1)), at(11, ("a", 2)), watermark=5),
        step(at(3, ("a", 4)), at(25, ("a", 8)), watermark=10),
        step(watermark=1000),
        step(),
    ]
    stage.play(timed(stage, script, AtTheEnd(), FixedWindows(10)))
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (1, ("a", 5), (0, 10)),
        (2, ("a", 2), (10, 20)),
        (2, ("a", 8), (20, 30)),
    ]


class Loop(beam.DoFn):
    """Each firing sets the next, five seconds on, up to 30. Looping timers, programming guide 11.3.5."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    TICK = TimerSpec("tick", TimeDomain.WATERMARK)

    def process(self, pair: Pair, tick: Any = beam.DoFn.TimerParam(TICK)) -> None:
        tick.set(pair[1])

    @on_timer(TICK)
    def ticked(
        self,
        key: Any = beam.DoFn.KeyParam,
        when: Any = beam.DoFn.TimestampParam,
        count: Any = beam.DoFn.StateParam(COUNT),
        tick: Any = beam.DoFn.TimerParam(TICK),
    ) -> Iterator[Pair]:
        count.write((count.read() or 0) + 1)
        if when < Timestamp(30):
            tick.set(when + 5)
        yield key, int(when) * 100 + count.read()


@on_spark
def test_a_timer_may_set_the_next(stage: Stage) -> None:
    script = [step(at(1, ("a", 10)), watermark=2), step(watermark=16), step(watermark=1000), step()]
    stage.play(timed(stage, script, Loop()))
    assert [(o.epoch, o.value[1], o.at) for o in stage.outs()] == [
        (1, 1001, 10),
        (1, 1502, 15),
        (2, 2003, 20),
        (2, 2504, 25),
        (2, 3005, 30),
    ]


def test_what_timers_emit_is_never_late_downstream(stage: Stage) -> None:
    """An event-time timer holds the output watermark at its time."""
    script = [step(at(1, ("a", 10)), watermark=2), step(watermark=16), step(watermark=1000), step()]

    def build(p: beam.Pipeline) -> None:
        ticks = p | Script(script) | "loop" >> beam.ParDo(Loop()).with_output_types(Pair)
        ones = ticks | beam.MapTuple(lambda key, _: (key, 1))
        stage.collect(ones | beam.WindowInto(FixedWindows(5)) | beam.CombinePerKey(sum))

    stage.play(build)
    assert stage.panes() == [
        (1, ("a", 1), (10, 15), "ON_TIME"),
        (2, ("a", 1), (15, 20), "ON_TIME"),
        (2, ("a", 1), (20, 25), "ON_TIME"),
        (2, ("a", 1), (25, 30), "ON_TIME"),
        (2, ("a", 1), (30, 35), "ON_TIME"),
    ]


def test_an_event_time_timer_holds_the_watermark_until_it_fires(stage: Stage) -> None:
    class Echo(beam.DoFn):
        """Emits at once, and again ten seconds after the element."""

        LATER = TimerSpec("later", TimeDomain.WATERMARK)

        def process(
            self, pair: Pair, when: Any = beam.DoFn.TimestampParam, later: Any = beam.DoFn.TimerParam(LATER)
        ) -> Iterator[Pair]:
            later.set(when + 10)
            yield pair

        @on_timer(LATER)
        def again(self, key: Any = beam.DoFn.KeyParam) -> Iterator[Pair]:
            yield key, 100

    script = [step(at(1, ("a", 1)), watermark=5), step(watermark=10.5), step(watermark=40), step()]

    def build(p: beam.Pipeline) -> None:
        echoed = p | Script(script) | beam.ParDo(Echo()).with_output_types(Pair)
        stage.collect(echoed | beam.WindowInto(FixedWindows(2)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [
        (0, ("a", [1]), (0, 2), "ON_TIME"),
        (2, ("a", [100]), (10, 12), "ON_TIME"),
    ]


class Tagged(beam.DoFn):
    """(key, n): sets the timer tagged with n's parity to n; 100 clears the even one."""

    FAMILY = TimerSpec("family", TimeDomain.WATERMARK)

    def process(self, pair: Pair, timer: Any = beam.DoFn.TimerParam(FAMILY)) -> None:
        if pair[1] == 100:
            timer.clear(dynamic_timer_tag="even")
        else:
            timer.set(pair[1], dynamic_timer_tag="odd" if pair[1] % 2 else "even")

    @on_timer(FAMILY)
    def fired(
        self,
        key: Any = beam.DoFn.KeyParam,
        tag: str = beam.DoFn.DynamicTimerTagParam,
        when: Any = beam.DoFn.TimestampParam,
    ) -> Iterator[Pair]:
        yield f"{key} {tag}", int(when)


@on_spark
def test_dynamic_timers_are_apart_by_tag(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 10)), at(1, ("a", 11)), at(1, ("b", 8)), at(1, ("b", 9)), watermark=2),
        step(at(3, ("a", 7)), at(3, ("b", 100)), watermark=7.5),
        step(watermark=12),
        step(),
    ]
    stage.play(timed(stage, script, Tagged()))
    assert [(o.epoch, o.value) for o in stage.outs()] == [
        (1, ("a odd", 7)),
        (2, ("a even", 10)),
        (2, ("b odd", 9)),
    ]


def test_timers_of_a_key_fire_in_the_order_of_their_times(stage: Stage) -> None:
    class Several(beam.DoFn):
        FAMILY = TimerSpec("family", TimeDomain.WATERMARK)
        SEEN = BagStateSpec("seen", VarIntCoder())

        def process(self, pair: Pair, timer: Any = beam.DoFn.TimerParam(FAMILY)) -> None:
            timer.set(pair[1], dynamic_timer_tag=str(pair[1]))

        @on_timer(FAMILY)
        def fired(self, key: Any = beam.DoFn.KeyParam, when: Any = beam.DoFn.TimestampParam) -> Iterator[Pair]:
            yield key, int(when)

    script = [
        step(*[at(1, ("a", second)) for second in (15, 12, 18, 30, 11)], watermark=2),
        step(at(3, ("a", 13)), watermark=20),
        step(),
    ]
    stage.play(timed(stage, script, Several()))
    assert [(o.epoch, o.value[1]) for o in stage.outs()] == [(1, 11), (1, 12), (1, 13), (1, 15), (1, 18), (2, 30)]


class Flush(beam.DoFn):
    """Buffers; 0.3 s of processing time after the first element it gives the sum."""

    BUFFER = BagStateSpec("buffer", VarIntCoder())
    FLUSH = TimerSpec("flush", TimeDomain.REAL_TIME)

    def __init__(self, emit_at: float | None = None) -> None:
        self.emit_at = emit_at

    def process(
        self, pair: Pair, buffer: Any = beam.DoFn.StateParam(BUFFER), flush: Any = beam.DoFn.TimerParam(FLUSH)
    ) -> None:
        if not list(buffer.read()):
            flush.set(time.time() + 0.3)
        buffer.add(pair[1])

    @on_timer(FLUSH)
    def flushed(self, key: Any = beam.DoFn.KeyParam, buffer: Any = beam.DoFn.StateParam(BUFFER)) -> Iterator[Any]:
        out = key, sum(buffer.read())
        yield out if self.emit_at is None else TimestampedValue(out, self.emit_at)
        buffer.clear()


def test_a_processing_time_timer_fires_while_the_stream_is_idle(stage: Stage) -> None:
    script = [step(at(1, ("a", 1)), watermark=2), step(at(2, ("a", 2)), pause_s=1.2), step(at(3, ("a", 4)))]
    stage.play(timed(stage, script, Flush(), stays=True))
    assert stage.values() == [("a", 3), ("a", 4)]


def test_a_processing_time_timer_holds_the_watermark_at_its_element(stage: Stage) -> None:
    """Programming guide 11.3.4: until it fires, the timer may emit at its element's time."""
    script = [step(at(1, ("a", 1)), watermark=2), step(watermark=50), step(watermark=60, pause_s=1.2), step()]

    def build(p: beam.Pipeline) -> None:
        flushed = p | Script(script) | beam.ParDo(Flush(emit_at=1)).with_output_types(Pair)
        stage.collect(flushed | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert [(o.value, o.window, o.timing) for o in stage.outs()] == [(("a", [1]), (0, 10), "ON_TIME")]


@pytest.mark.xfail(strict=True, reason="Beam Python gives what any timer emits the time at which the timer fired")
def test_what_a_processing_time_timer_emits_has_its_elements_time(whole: Stage) -> None:
    script = [step(at(1, ("a", 1)), watermark=2)]
    whole.play(timed(whole, script, Flush(), stays=True))
    assert [o.at for o in whole.outs()] == [1]


def test_what_is_buffered_when_the_input_ends_is_flushed(whole: Stage) -> None:
    """Beam's in-memory runner fires processing-time timers at the end of its input; without it they lose data."""
    whole.play(timed(whole, [step(at(1, ("a", 1))), step(at(1, ("a", 2)))], Flush()))
    assert whole.values() == [("a", 3)]


class Beat(beam.DoFn):
    """Each firing sets the next, without an end, one second of event time or an instant of processing time on."""

    EVENT = TimerSpec("event", TimeDomain.WATERMARK)
    REAL = TimerSpec("real", TimeDomain.REAL_TIME)

    def process(
        self,
        pair: Pair,
        when: Any = beam.DoFn.TimestampParam,
        event: Any = beam.DoFn.TimerParam(EVENT),
        real: Any = beam.DoFn.TimerParam(REAL),
    ) -> None:
        if pair[0] == "event":
            event.set(when + 1)
        else:
            real.set(time.time() + 0.01)

    @on_timer(EVENT)
    def on_event(
        self, when: Any = beam.DoFn.TimestampParam, event: Any = beam.DoFn.TimerParam(EVENT)
    ) -> Iterator[Pair]:
        event.set(when + 1)
        yield "event", int(when)

    @on_timer(REAL)
    def on_real(self, real: Any = beam.DoFn.TimerParam(REAL)) -> Iterator[Pair]:
        real.set(time.time() + 0.01)
        yield "real", 0


def test_a_loop_of_timers_ends_with_its_window(stage: Stage) -> None:
    """State and timers are garbage once the watermark is past the window and the allowed lateness."""
    script = [step(at(1, ("event", 0)), at(1, ("real", 0)), watermark=2), step(watermark=100, pause_s=0.2), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script, stays=True) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        stage.collect(windowed | "beat" >> beam.ParDo(Beat()).with_output_types(Pair))

    with pytest.warns(UserWarning, match="beat: timer 'event' was set when its window had expired: dropped"):
        stage.play(build)
    assert [at for kind, at in stage.values() if kind == "event"] == list(range(2, 16))
    manifest = last_manifest(f"{stage.root}/checkpoint")
    assert manifest is not None
    assert manifest.groups["beat"] == {}


@pytest.mark.parametrize("lateness", [0, 5])
def test_a_timer_fires_at_the_latest_with_the_state_of_its_window(stage: Stage, lateness: int) -> None:
    """What is buffered until a processing time, or until an event time after the window, would be lost otherwise."""

    class Both(beam.DoFn):
        BUFFER = BagStateSpec("buffer", VarIntCoder())
        EVENT = TimerSpec("event", TimeDomain.WATERMARK)
        REAL = TimerSpec("real", TimeDomain.REAL_TIME)

        def process(
            self,
            pair: Pair,
            buffer: Any = beam.DoFn.StateParam(BUFFER),
            event: Any = beam.DoFn.TimerParam(EVENT),
            real: Any = beam.DoFn.TimerParam(REAL),
        ) -> None:
            buffer.add(pair[1])
            if pair[0] == "event":
                event.set(60)
            else:
                real.set(time.time() + 3600)

        @on_timer(EVENT)
        def on_event(self, buffer: Any = beam.DoFn.StateParam(BUFFER)) -> Iterator[Pair]:
            yield "event", sum(buffer.read())

        @on_timer(REAL)
        def on_real(self, buffer: Any = beam.DoFn.StateParam(BUFFER)) -> Iterator[Pair]:
            yield "real", sum(buffer.read())

    script = [
        step(at(1, ("event", 1)), at(1, ("real", 2)), watermark=2),
        step(at(3, ("event", 4)), at(3, ("real", 8)), watermark=9 + lateness),
        step(watermark=10 + lateness),
        step(watermark=70),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=lateness)
        stage.collect(windowed | beam.ParDo(Both()).with_output_types(Pair))

    stage.play(build)
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (2, ("event", 5), (0, 10)),
        (2, ("real", 10), (0, 10)),
    ]


class FewAtATime(beam.DoFn):
    """Writes two of what it holds at a firing, and sets the timer again if there is more; with `forever`, always."""

    BAG = BagStateSpec("bag", VarIntCoder())
    NEXT = TimerSpec("next", TimeDomain.REAL_TIME)

    def __init__(self, *, forever: bool = False) -> None:
        self.forever = forever

    def process(
        self, pair: Pair, bag: Any = beam.DoFn.StateParam(BAG), timer: Any = beam.DoFn.TimerParam(NEXT)
    ) -> None:
        bag.add(pair[1])
        timer.set(time.time() + 100)

    @on_timer(NEXT)
    def write(
        self,
        key: Any = beam.DoFn.KeyParam,
        bag: Any = beam.DoFn.StateParam(BAG),
        timer: Any = beam.DoFn.TimerParam(NEXT),
    ) -> Iterator[Pair]:
        held = sorted(bag.read())
        bag.clear()
        for value in held[2:]:
            bag.add(value)
        if held[2:] or self.forever:
            timer.set(time.time() + 100)
        yield key, sum(held[:2])


def test_timers_that_are_set_again_at_the_end_of_the_input_go_on_firing(whole: Stage) -> None:
    """As on Beam's Flink runner: what a DoFn has not written when its input ends would be lost with its state."""
    whole.play(timed(whole, [step(*[at(1, (key, n)) for n in range(7) for key in "ab"])], FewAtATime()))
    assert whole.keyed() == [(key, some) for key in "ab" for some in (0 + 1, 2 + 3, 4 + 5, 6)]


def test_timers_of_many_keys_wait_no_longer_at_the_end_than_that_of_one(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(timers, "time", SimpleNamespace(time=lambda: time.time() + sum(waits), sleep=waits.append))
    keys = [f"{n:02}" for n in range(40)]
    whole.run(timed(whole, [step(*[at(1, (key, n)) for n in range(3) for key in keys])], FewAtATime()), 1)
    assert whole.keyed() == [(key, some) for key in keys for some in (0 + 1, 2)]
    assert timers.LONGEST_WAIT_S <= sum(waits) < 10 * timers.LONGEST_WAIT_S


def test_a_timer_that_always_sets_itself_again_fails_the_job_at_the_end_of_its_input(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "MOST_FIRINGS", 5)
    with pytest.raises(RunnerError, match="timed: timer 'ts-next' was set again 5 times"):
        whole.play(timed(whole, [step(at(1, ("a", 1)))], FewAtATime(forever=True)))


def test_both_time_domains_in_one_dofn(stage: Stage) -> None:
    class Both(beam.DoFn):
        EVENT = TimerSpec("event", TimeDomain.WATERMARK)
        REAL = TimerSpec("real", TimeDomain.REAL_TIME)
        COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())

        def process(
            self,
            pair: Pair,
            event: Any = beam.DoFn.TimerParam(EVENT),
            real: Any = beam.DoFn.TimerParam(REAL),
            count: Any = beam.DoFn.StateParam(COUNT),
        ) -> None:
            count.write(pair[1])
            event.set(20)
            real.set(time.time() + 0.3)

        @on_timer(EVENT)
        def on_event(self, count: Any = beam.DoFn.StateParam(COUNT)) -> Iterator[Pair]:
            yield "event", count.read()

        @on_timer(REAL)
        def on_real(self, count: Any = beam.DoFn.StateParam(COUNT)) -> Iterator[Pair]:
            yield "real", count.read()
            count.write(count.read() + 1)

    script = [step(at(1, ("a", 7)), watermark=2, pause_s=1.2), step(watermark=3), step(watermark=21), step()]
    stage.play(timed(stage, script, Both()))
    assert stage.values() == [("real", 7), ("event", 8)]


def test_groups_into_batches_with_a_rest_at_the_windows_end(stage: Stage) -> None:
    """A transform of Beam's own that stands on state and timers."""
    script = [
        step(*[at(1, ("a", n)) for n in range(2)], watermark=2),
        step(*[at(3, ("a", n)) for n in range(2, 5)], at(13, ("a", 9)), watermark=4),
        step(at(5, ("a", 5)), at(5, ("a", 6)), watermark=11),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10))
        stage.collect(windowed | beam.GroupIntoBatches(3))

    stage.play(build)
    assert sorted((o.window, len(o.value[1])) for o in stage.outs()) == [
        ((0, 10), 1),
        ((0, 10), 3),
        ((0, 10), 3),
        ((10, 20), 1),
    ]
    assert sorted(n for o in stage.outs() for n in o.value[1]) == [0, 1, 2, 3, 4, 5, 6, 9]
