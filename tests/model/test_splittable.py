"""Splittable DoFns as sources: programming guide, chapter 12. Self-checkpointing, watermarks, splits, drain."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import (
    ManualWatermarkEstimator,
    MonotonicWatermarkEstimator,
    WalltimeWatermarkEstimator,
)
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.periodicsequence import PeriodicImpulse, PeriodicSequence
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.progress import manifest_of
from spark_jobs.beam_runner.transport.local import LocalTransport
from tests.model.script import Script, at, step
from tests.model.stream import Stage, on_spark

Pair = tuple[str, int]


class Ranges(RestrictionProvider):
    """(name, n) -> [0, n), in `parts` pieces."""

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts

    def initial_restriction(self, element: Pair) -> OffsetRange:
        return OffsetRange(0, element[1])

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def split(self, element: Pair, restriction: OffsetRange) -> Iterator[OffsetRange]:
        size = max(1, (restriction.stop - restriction.start) // self.parts)
        yield from restriction.split(size)

    def restriction_size(self, element: Pair, restriction: OffsetRange) -> int:
        return int(restriction.size())


def counter(
    estimator: Any = None, *, delay_s: float = 0.0, parts: int = 1, per_epoch: int = 1, timestamps: bool = True
) -> beam.DoFn:
    """(name, n) -> (name, 0) .. (name, n - 1), `per_epoch` at a time, at event times 0, 1, .. n - 1."""

    class Count(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self,
            element: Pair,
            tracker: Any = beam.DoFn.RestrictionParam(Ranges(parts)),
            watermark: Any = beam.DoFn.WatermarkEstimatorParam(
                estimator or ManualWatermarkEstimator.default_provider()
            ),
        ) -> Iterator[Any]:
            start, stop = tracker.current_restriction().start, tracker.current_restriction().stop
            for index in range(start, min(start + per_epoch, stop)):
                if not tracker.try_claim(index):
                    return
                yield TimestampedValue((element[0], index), index) if timestamps else (element[0], index)
            if start + per_epoch < stop:
                tracker.defer_remainder(Duration(delay_s) if delay_s else None)

    return Count()


def counted(p: beam.Pipeline, dofn: beam.DoFn, *elements: Pair) -> Any:
    return p | beam.Create(list(elements)) | "count" >> beam.ParDo(dofn).with_output_types(Pair)


@on_spark
def test_a_source_goes_on_where_it_deferred(stage: Stage) -> None:
    stage.play(lambda p: stage.collect(counted(p, counter(per_epoch=2), ("a", 5), ("b", 3))))
    assert [(o.epoch, o.value, o.at) for o in stage.outs()] == [
        (0, ("a", 0), 0),
        (0, ("a", 1), 1),
        (0, ("b", 0), 0),
        (0, ("b", 1), 1),
        (1, ("a", 2), 2),
        (1, ("a", 3), 3),
        (1, ("b", 2), 2),
        (2, ("a", 4), 4),
    ]


@pytest.mark.parametrize(
    "busy_s",
    [
        0.0,
        0.5,
    ],
)
def test_a_source_is_left_alone_for_as_long_as_it_asks(whole: Stage, busy_s: float) -> None:
    class Slow(beam.DoFn):
        """Emits the times at which it was called and at which it asked to be left alone for 0.5 s."""

        @beam.DoFn.unbounded_per_element()
        def process(
            self, element: Pair, tracker: Any = beam.DoFn.RestrictionParam(Ranges())
        ) -> Iterator[tuple[float, float]]:
            called = time.time()
            if tracker.try_claim(tracker.current_restriction().start):
                time.sleep(busy_s)
                yield called, time.time()
                tracker.defer_remainder(Duration(0.5))

    def build(p: beam.Pipeline) -> None:
        whole.collect(p | beam.Create([("a", 3)]) | "read" >> beam.ParDo(Slow()).with_output_types(tuple[float, float]))

    for expected in (1, 2, 3):  # `--until_idle` takes a source that asks for time for an idle one
        if len(whole.values() if whole.result else ()) < expected:
            whole.play(build)
    calls = whole.values()
    assert len(calls) == 3
    slack_s = 0.0 if busy_s else 0.35  # from the epoch's start to the call, on a busy machine
    (_, asked), (called, _) = calls[1:]  # not the first call: its epoch builds the stages
    assert called - asked >= 0.5 - slack_s


def test_a_pause_is_counted_by_the_clock_that_it_is_compared_with(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks' clock is ten minutes ahead of the driver's."""
    run, clock = LocalTransport.run, time.time_ns

    def run_ahead(*args: Any) -> Any:
        with monkeypatch.context() as tasks:
            tasks.setattr(time, "time_ns", lambda: clock() + 600 * 10**9)
            return run(*args)

    monkeypatch.setattr(LocalTransport, "run", run_ahead)
    script = [step(at(1, ("a", 1)), pause_s=0.05), step(at(2, ("a", 2)))]
    options = whole._options(1)
    options.view_as(SparkRunnerOptions).until_idle = False
    pipeline = whole._pipeline(lambda p: whole.collect(p | Script(script)))
    result = SparkRunner().run_pipeline(pipeline, options)
    result.wait_until_finish(20_000)
    result.cancel()
    assert result.wait_until_finish() == "DONE"
    assert whole.values() == [("a", 1), ("a", 2)]


@on_spark
def test_initial_splits_are_read_once_each(stage: Stage) -> None:
    stage.play(lambda p: stage.collect(counted(p, counter(parts=4, per_epoch=2), ("a", 12))))
    assert sorted(stage.values()) == [("a", n) for n in range(12)]
    assert {o.epoch for o in stage.outs()} == {0, 1}  # four parts of three, two an epoch


def test_a_restriction_that_ends_no_longer_holds_the_watermark(stage: Stage) -> None:
    short = [step(at(1, ("k", 1)), watermark=2)]
    long = [step(at(3, ("k", 3)), watermark=9), step(watermark=11), step(watermark=12)]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(short, long) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(1, ("k", [1, 3]), (0, 10), "ON_TIME")]


def test_a_restriction_that_waits_holds_the_watermark(stage: Stage) -> None:
    waits = [step(at(1, ("k", 1)), watermark=2), step(pause_s=1), step(at(4, ("k", 4)), watermark=20), step()]
    goes_on = [step(at(3, ("k", 3))), step(watermark=30), *[step() for _ in range(5)]]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(waits, goes_on) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert [(o.value, o.window, o.timing) for o in stage.outs()] == [(("k", [1, 3, 4]), (0, 10), "ON_TIME")]


def windows_of_three(stage: Stage, dofn: beam.DoFn, count: int) -> None:
    def build(p: beam.Pipeline) -> None:
        stage.collect(counted(p, dofn, ("a", count)) | beam.WindowInto(FixedWindows(3)) | beam.GroupByKey())

    stage.play(build)


def test_a_monotonic_estimator_follows_the_elements(stage: Stage) -> None:
    class FromTheStart(WatermarkEstimatorProvider):
        """Beam's default provider starts at None, which its own estimator cannot compare."""

        def initial_estimator_state(self, element: Pair, restriction: OffsetRange) -> Timestamp:
            return MIN_TIMESTAMP

        def create_watermark_estimator(self, state: Timestamp) -> MonotonicWatermarkEstimator:
            return MonotonicWatermarkEstimator(state)

    windows_of_three(stage, counter(FromTheStart()), 5)
    # Element 3 is out in epoch 3: then the watermark is 3.
    assert stage.panes() == [
        (3, ("a", [0, 1, 2]), (0, 3), "ON_TIME"),
        (4, ("a", [3, 4]), (3, 6), "ON_TIME"),
    ]


def test_a_source_without_estimates_closes_nothing_before_its_end(whole: Stage) -> None:
    windows_of_three(whole, counter(), 5)
    assert whole.panes() == [
        (4, ("a", [0, 1, 2]), (0, 3), "ON_TIME"),
        (4, ("a", [3, 4]), (3, 6), "ON_TIME"),
    ]


class GoesBack(ManualWatermarkEstimator):
    """Beam's refuses a watermark that is less than the one before; an estimator of one's own may not."""

    def set_watermark(self, timestamp: Timestamp) -> None:
        self._watermark = timestamp


def test_a_watermark_never_goes_back_whatever_its_estimator_says(stage: Stage) -> None:
    class Estimates(WatermarkEstimatorProvider):
        def initial_estimator_state(self, element: Pair, restriction: OffsetRange) -> Timestamp:
            return Timestamp(0)

        def create_watermark_estimator(self, state: Timestamp) -> GoesBack:
            return GoesBack(state)

    class Read(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self,
            element: Pair,
            tracker: Any = beam.DoFn.RestrictionParam(Ranges()),
            watermark: Any = beam.DoFn.WatermarkEstimatorParam(Estimates()),
        ) -> Iterator[Any]:
            index = tracker.current_restriction().start
            if tracker.try_claim(index):
                yield TimestampedValue((element[0], index), 5)
                watermark.set_watermark(Timestamp([30, 3, 31][index]))
                tracker.defer_remainder()

    def build(p: beam.Pipeline) -> None:
        pairs = counted(p, Read(), ("a", 3)) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey()
        stage.collect(pairs | beam.MapTuple(lambda key, some: (key, sorted(some))))

    stage.play(build)
    assert stage.values() == [("a", [0])]  # the window is over, and stays so
    assert stage.counters()["droppedDueToLateness"] == 2
    checkpoint = Checkpoint(f"{stage.root}/checkpoint")
    reached = [manifest_of(checkpoint, epoch).output_us for epoch in checkpoint.epochs()]
    for before, after in pairwise(reached):
        assert all(after[name] >= at_us for name, at_us in before.items())


def test_a_walltime_estimator_is_at_the_wall_clock(whole: Stage) -> None:
    """Elements of long ago are late as soon as it has been asked; those of its first epoch are not."""
    windows_of_three(whole, counter(WalltimeWatermarkEstimator.default_provider(), per_epoch=2), 6)
    assert whole.panes() == [(0, ("a", [0, 1]), (0, 3), "ON_TIME")]


@on_spark
def test_a_stream_may_bring_new_restrictions(stage: Stage) -> None:
    """An SDF that reads what a stream names: the restrictions that are left go on beside the new ones."""
    script = [step(at(10, ("a", 3)), watermark=8), step(at(20, ("b", 2)), watermark=15), step(), step()]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | "read" >> beam.ParDo(counter(timestamps=False)).with_output_types(Pair))

    stage.play(build)
    assert [(o.epoch, o.value, o.at) for o in stage.outs()] == [
        (0, ("a", 0), 10),
        (1, ("a", 1), 10),
        (1, ("b", 0), 20),
        (2, ("a", 2), 10),
        (2, ("b", 1), 20),
    ]


def test_a_restriction_holds_the_watermark_at_its_element(stage: Stage) -> None:
    """What is left of element 10 may still emit at 10, whatever the stream that brought it says since."""
    script = [step(at(10, ("a", 3)), watermark=11), step(watermark=50), step(watermark=60), step(watermark=70), step()]

    def build(p: beam.Pipeline) -> None:
        read = p | Script(script) | "read" >> beam.ParDo(counter(timestamps=False)).with_output_types(Pair)
        stage.collect(read | beam.WindowInto(FixedWindows(5)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [(2, ("a", [0, 1, 2]), (10, 15), "ON_TIME")]


def test_a_bounded_splittable_dofn_inside_a_stream(whole: Stage) -> None:
    class Expand(beam.DoFn):
        def process(self, element: Pair, tracker: Any = beam.DoFn.RestrictionParam(Ranges(2))) -> Iterator[Pair]:
            index = tracker.current_restriction().start
            while tracker.try_claim(index):
                yield element[0], index
                index += 1

    script = [step(at(1, ("a", 4)), watermark=5), step(at(7, ("b", 2)), watermark=10), step()]

    def build(p: beam.Pipeline) -> None:
        expanded = p | Script(script) | "expand" >> beam.ParDo(Expand()).with_output_types(Pair)
        whole.collect(expanded | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    whole.play(build)
    assert whole.panes() == [
        (1, ("a", [0, 1, 2, 3]), (0, 10), "ON_TIME"),
        (1, ("b", [0, 1]), (0, 10), "ON_TIME"),
    ]


class Endless(beam.DoFn):
    """Never defers. It gives up after some seconds, so that a runner that does not split it fails, not hangs."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Pair,
        tracker: Any = beam.DoFn.RestrictionParam(Ranges()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        index = tracker.current_restriction().start
        deadline = time.monotonic() + 20
        while tracker.try_claim(index):
            assert time.monotonic() < deadline, "the runner did not split this restriction"
            yield TimestampedValue((element[0], index), index)
            index += 1
            watermark.set_watermark(Timestamp(index))
            time.sleep(0.01)


def test_a_source_that_never_defers_is_split_by_the_runner(whole: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        whole.collect(counted(p, Endless(), ("a", 2**40)))

    for tasks in (2, 1, 3):
        whole.run(build, tasks, "--split_after_ms=300", stop_after_epoch=True)
    values = [value[1] for value in whole.values()]
    assert {o.epoch for o in whole.outs()} == {0, 1, 2}
    assert values == list(range(len(values)))


def test_what_a_cut_leaves_in_one_window_of_an_element_stays_in_it(stage: Stage) -> None:
    class Read(beam.DoFn):
        """Looks at its window."""

        def process(
            self,
            element: Pair,
            window: Any = beam.DoFn.WindowParam,
            tracker: Any = beam.DoFn.RestrictionParam(Ranges()),
        ) -> Iterator[Pair]:
            index = tracker.current_restriction().start
            while tracker.try_claim(index):
                yield element[0], index
                index += 1
                time.sleep(0.005)

    def build(p: beam.Pipeline) -> None:
        elements = p | beam.Create([("a", 60)]) | "at 7" >> beam.Map(lambda pair: TimestampedValue(pair, 7))
        windowed = elements | beam.WindowInto(SlidingWindows(10, 5))
        stage.collect(windowed | "read" >> beam.ParDo(Read()).with_output_types(Pair))

    stage.play(build, "--split_after_ms=120")
    assert stage.result.epochs > 1
    seen = Counter((o.value[1], o.window) for o in stage.outs())
    assert seen == dict.fromkeys([(n, w) for n in range(60) for w in ((0.0, 10.0), (5.0, 15.0))], 1)


def test_a_periodic_impulse_fires_at_its_instants(stage: Stage) -> None:
    start, step_s, count = round(time.time() + 0.2, 3), 0.4, 3

    def build(p: beam.Pipeline) -> None:
        ticks = p | PeriodicImpulse(start, start + step_s * count - 0.01, step_s)
        stage.collect(ticks | beam.Map(lambda tick: (float(tick), time.time())))

    while stage.result is None or len(stage.outs()) < count:
        before = len(stage.outs()) if stage.result is not None else -1
        stage.play(build)  # `--until_idle` ends a run while the source waits for its next instant
        assert len(stage.outs()) > before or time.time() < start + step_s * count + 5
    expected = [pytest.approx(start + step_s * n, abs=1e-3) for n in range(count)]
    assert [o.value[0] for o in stage.outs()] == expected
    assert [o.at for o in stage.outs()] == expected
    assert all(seen >= tick - 1e-3 for tick, seen in stage.values())


def test_a_periodic_sequence_closes_windows_as_it_goes(stage: Stage) -> None:
    """A sequence of the past is emitted at once, in order, and its watermark follows it."""

    def build(p: beam.Pipeline) -> None:
        ticks = p | beam.Create([(0, 10, 2)]) | PeriodicSequence()
        keyed = ticks | beam.Map(lambda tick: ("k", int(tick))).with_output_types(Pair)
        stage.collect(keyed | beam.WindowInto(FixedWindows(5)) | beam.GroupByKey())

    stage.play(build)
    assert [(o.value, o.window, o.timing) for o in stage.outs()] == [
        (("k", [0, 2, 4]), (0, 5), "ON_TIME"),
        (("k", [6, 8]), (5, 10), "ON_TIME"),
    ]


@pytest.mark.parametrize("news", ["elements", "callbacks", "metrics"])
def test_a_source_whose_position_is_elsewhere_is_not_idle_while_it_has_news(stage: Stage, news: str) -> None:
    """Its restriction is always the same: what is left to read is known to a broker, here a folder of messages."""
    root, queue = stage.root, stage.root / "queue"
    queue.mkdir()
    for name in "abc":
        (queue / name).touch()

    class Receive(beam.DoFn):
        """Takes one message at a time."""

        @beam.DoFn.unbounded_per_element()
        def process(
            self,
            element: Pair,
            finalizer: Any = beam.DoFn.BundleFinalizerParam,
            tracker: Any = beam.DoFn.RestrictionParam(Ranges()),
        ) -> Iterator[str]:
            for message in sorted(queue.iterdir())[:1]:
                if news == "callbacks":
                    finalizer.register(message.unlink)
                else:
                    message.unlink()
                if news == "metrics":
                    Metrics.counter("model", "received").inc()
                if news == "elements":
                    yield message.name
            tracker.defer_remainder(Duration(0.02))

    def build(p: beam.Pipeline) -> None:
        received = p | beam.Create([("queue", 1)]) | "receive" >> beam.ParDo(Receive()).with_output_types(str)
        _ = received | "sink" >> beam.Map(lambda name: (root / f"sunk {name}").touch())

    stage.play(build)
    assert not list(queue.iterdir())
    assert stage.result.epochs == 3  # polls that found nothing are no epochs
    assert len(list(root.glob("sunk *"))) == (3 if news == "elements" else 0)
    assert stage.counters().get("received", 0) == (3 if news == "metrics" else 0)


class TestDrain:
    """Sources are truncated, the watermark goes to the end of time, windows close and timers fire."""

    def test_open_windows_fire(self, whole: Stage) -> None:
        script = [step(at(1, ("k", 1)), watermark=2), step(at(3, ("k", 3)), watermark=5)]

        def build(p: beam.Pipeline) -> None:
            windowed = p | Script(script, stays=True) | beam.WindowInto(FixedWindows(10))
            whole.collect(windowed | beam.GroupByKey())

        whole.drain(build, after_epochs=2)
        assert [(o.value, o.window, o.timing) for o in whole.outs()] == [(("k", [1, 3]), (0, 10), "ON_TIME")]

    @pytest.mark.slow
    def test_as_spark_jobs(self, tmp_path: Path) -> None:
        self.test_open_windows_fire(Stage(tmp_path / "windows", "spark"))
        self.test_a_restriction_is_truncated_to_what_its_provider_wants(Stage(tmp_path / "restriction", "spark"))

    def test_event_time_timers_fire(self, whole: Stage) -> None:
        class Alarm(beam.DoFn):
            RING = TimerSpec("ring", TimeDomain.WATERMARK)

            def process(self, pair: Pair, ring: Any = beam.DoFn.TimerParam(RING)) -> None:
                ring.set(pair[1])

            @on_timer(RING)
            def rang(self, key: Any = beam.DoFn.KeyParam, when: Any = beam.DoFn.TimestampParam) -> Iterator[Pair]:
                yield key, int(when)

        def build(p: beam.Pipeline) -> None:
            pairs = p | Script([step(at(1, ("k", 1000)), watermark=2)], stays=True)
            whole.collect(pairs | beam.ParDo(Alarm()).with_output_types(Pair))

        whole.drain(build, after_epochs=1)
        assert whole.values() == [("k", 1000)]

    def test_a_restriction_is_truncated_to_what_its_provider_wants(self, whole: Stage) -> None:
        class ToTheNextTen(Ranges):
            def truncate(self, element: Pair, restriction: OffsetRange) -> OffsetRange | None:
                stop = -(-restriction.start // 10) * 10
                return OffsetRange(restriction.start, stop) if stop > restriction.start else None

        class Slow(beam.DoFn):
            @beam.DoFn.unbounded_per_element()
            def process(
                self, element: Pair, tracker: Any = beam.DoFn.RestrictionParam(ToTheNextTen())
            ) -> Iterator[Pair]:
                index = tracker.current_restriction().start
                if tracker.try_claim(index):
                    yield element[0], index
                    tracker.defer_remainder()

        whole.drain(lambda p: whole.collect(counted(p, Slow(), ("a", 2**40))), after_epochs=3)
        values = [value[1] for value in whole.values()]
        assert len(values) >= 3
        assert values == list(range(len(values)))
        assert len(values) % 10 == 0
