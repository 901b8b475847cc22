"""Unbounded side inputs: elements wait for their window, whole and across restarts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.testing import test_stream
from apache_beam.transforms import trigger, userstate, window
from apache_beam.transforms.window import TimestampedValue as At
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.bundles.waiting import Side, _ready_at
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from tests.faults import counting_job
from tests.unit.beam_runner import script_job

Run = Callable[[Path, script_job.Build], object]
both_ways = pytest.mark.parametrize("run", [script_job.run, script_job.run_with_restarts], ids=["whole", "restarts"])


def streams(pipeline: beam.Pipeline, *events: tuple[str, str, Any]) -> tuple[Any, Any]:
    """('add', tag, elements) and ('to', tag, watermark) -> the streams 'main' and 'side'."""
    script = test_stream.TestStream()
    for what, tag, value in events:
        script = script.add_elements(value, tag=tag) if what == "add" else script.advance_watermark_to(value, tag=tag)
    for tag in ("main", "side"):
        script = script.advance_watermark_to_infinity(tag=tag)
    outputs = pipeline | script
    return outputs["main"], outputs["side"]


def look(element: Any, side: list[Any]) -> bytes:
    return json.dumps([element, sorted(side)]).encode()


@both_ways
def test_an_element_waits_until_the_side_window_is_complete_and_sees_that_window_only(tmp_path: Path, run: Run) -> None:
    def build(p: beam.Pipeline) -> Any:
        main, side = streams(
            p,
            ("add", "main", [At("early", 3), At("next", 13)]),
            ("add", "side", [At(1, 4), At(2, 14)]),
            ("to", "main", 20),
            ("add", "side", [At(3, 5)]),
            ("to", "side", 10),
            ("add", "main", [At("later", 21)]),
            ("add", "side", [At(4, 25), At(5, 15)]),
            ("to", "side", 20),
        )
        main = main | "main windows" >> beam.WindowInto(window.FixedWindows(5))
        side = side | "side windows" >> beam.WindowInto(window.FixedWindows(10))
        return main | "look" >> beam.Map(look, beam.pvalue.AsList(side))

    run(tmp_path, build)
    # One by one, in the order in which the side input's windows became complete.
    assert script_job.rows(tmp_path) == [["early", [1, 3]], ["next", [2, 5]], ["later", [4]]]


@both_ways
def test_waiting_elements_hold_the_watermark_and_are_not_late_downstream(tmp_path: Path, run: Run) -> None:
    def build(p: beam.Pipeline) -> Any:
        main, side = streams(
            p,
            ("add", "main", [At(1, 3), At(2, 4)]),
            ("to", "main", 100),
            ("add", "side", [At(10, 1)]),
            ("to", "side", 100),
        )
        side = side | "side windows" >> beam.WindowInto(window.FixedWindows(10))
        return (
            main
            | "main windows" >> beam.WindowInto(window.FixedWindows(10))
            | "look" >> beam.Map(lambda x, s: ("key", x + s), beam.pvalue.AsSingleton(side))
            | "sum" >> beam.CombinePerKey(sum)
            | "format" >> beam.Map(lambda pair: json.dumps(pair[1]).encode())
        )

    run(tmp_path, build)
    assert script_job.rows(tmp_path) == [23]


class CountUntilTimer(beam.DoFn):
    """Counts elements of a key that the side input names, and reports when its window ends."""

    SEEN = userstate.ReadModifyWriteStateSpec("seen", beam.coders.VarIntCoder())
    END = userstate.TimerSpec("end", userstate.TimeDomain.WATERMARK)

    def process(
        self,
        pair: tuple[str, int],
        named: dict[str, int],
        at: Any = beam.DoFn.WindowParam,
        seen: Any = beam.DoFn.StateParam(SEEN),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> None:
        seen.write((seen.read() or 0) + pair[1] * named[pair[0]])
        end.set(at.end)

    @userstate.on_timer(END)
    def report(self, key: Any = beam.DoFn.KeyParam, seen: Any = beam.DoFn.StateParam(SEEN)) -> Any:
        yield json.dumps([key, seen.read()]).encode()


@both_ways
def test_a_stateful_step_waits_too_and_its_timers_with_it(tmp_path: Path, run: Run) -> None:
    def build(p: beam.Pipeline) -> Any:
        main, side = streams(
            p,
            ("add", "main", [At((key, 1), 3) for key in "abcdef"]),
            ("to", "main", 50),
            ("add", "side", [At((key, factor), 1) for factor, key in enumerate("abcdef", 1)]),
            ("to", "side", 50),
        )
        side = side | "side windows" >> beam.WindowInto(window.FixedWindows(10))
        return (
            main
            | "pairs" >> beam.Map(lambda pair: pair).with_output_types(tuple[str, int])
            | "main windows" >> beam.WindowInto(window.FixedWindows(10))
            | "count" >> beam.ParDo(CountUntilTimer(), beam.pvalue.AsDict(side))
        )

    run(tmp_path, build)
    assert sorted(script_job.rows(tmp_path)) == [[key, n] for n, key in enumerate("abcdef", 1)]


@both_ways
def test_a_late_element_sees_its_window_within_the_allowed_lateness(tmp_path: Path, run: Run) -> None:
    def build(p: beam.Pipeline) -> Any:
        main, side = streams(
            p,
            ("add", "side", [At(1, 4)]),
            ("to", "side", 100),
            ("to", "main", 25),
            ("add", "main", [At("late", 3)]),
        )
        main = main | "main windows" >> beam.WindowInto(window.FixedWindows(10), allowed_lateness=20)
        side = side | "side windows" >> beam.WindowInto(window.FixedWindows(10))
        return main | "look" >> beam.Map(look, beam.pvalue.AsList(side))

    run(tmp_path, build)
    assert script_job.rows(tmp_path) == [["late", [1]]]


def test_a_side_input_that_fires_early_is_ready_when_it_has_fired(tmp_path: Path) -> None:
    def build(p: beam.Pipeline) -> Any:
        main, side = streams(
            p,
            ("add", "main", [At("first", 1)]),
            ("add", "side", [At(7, 1)]),
            ("add", "main", [At("second", 2)]),
        )
        fired = (
            side
            | "global"
            >> beam.WindowInto(
                window.GlobalWindows(),
                trigger=trigger.Repeatedly(trigger.AfterCount(1)),
                accumulation_mode=trigger.AccumulationMode.DISCARDING,
            )
            | "key" >> beam.Map(lambda x: (None, x))
            | beam.GroupByKey()
            | beam.FlatMap(lambda pair: pair[1])
        )
        return main | "look" >> beam.Map(look, beam.pvalue.AsList(fired))

    result = script_job.run(tmp_path, build)
    assert script_job.rows(tmp_path) == [["first", [7]], ["second", [7]]]
    assert result.epochs == 6  # the impulses, three additions and two ends


def test_elements_of_windows_that_all_have_left_are_dropped_from_the_checkpoint(tmp_path: Path) -> None:
    def build(p: beam.Pipeline) -> Any:
        steps = [
            (what, tag, [At(n, n)] if what == "add" else n + 1)
            for n in range(40)
            for what, tag in (("add", "side"), ("to", "side"), ("to", "main"))
        ]
        main, side = streams(p, *steps)
        main = main | "main windows" >> beam.WindowInto(window.FixedWindows(1))
        side = side | "side windows" >> beam.WindowInto(window.FixedWindows(1))
        return main | "look" >> beam.Map(look, beam.pvalue.AsList(side))

    script_job.run(tmp_path, build, stop_after=100)
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    kept = Manifest.from_json(checkpoint.read_manifest(100), "last").sides
    assert sum(map(len, kept.values())) <= 2


class Five(counting_job.Forever):
    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, 5)


class Slowly(beam.DoFn):
    """0 .. 4, one an epoch; bounded."""

    def process(self, _: int, tracker: Any = beam.DoFn.RestrictionParam(Five())) -> Any:
        at = tracker.current_restriction().start
        if tracker.try_claim(at):
            yield at
            tracker.defer_remainder()


@both_ways
def test_bounded_side_inputs_of_a_stream_are_complete_before_they_are_seen(tmp_path: Path, run: Run) -> None:
    """A bounded source that takes several epochs: its reader waits for the last."""

    def build(p: beam.Pipeline) -> Any:
        main = p | "main" >> beam.Create(["only"])
        side = p | "side" >> beam.Create([0]) | "slowly" >> beam.ParDo(Slowly())
        return main | "look" >> beam.Map(look, beam.pvalue.AsList(side))

    run(tmp_path, build)
    assert script_job.rows(tmp_path) == [["only", [0, 1, 2, 3, 4]]]


@both_ways
def test_a_grouping_whose_step_waits_for_a_slow_side_input_keeps_its_keys_apart(tmp_path: Path, run: Run) -> None:
    """Its input is put aside as a whole; after a restart with more tasks each has to find its own keys in it."""

    def build(p: beam.Pipeline) -> Any:
        slow = p | "side" >> beam.Create([0]) | "slowly" >> beam.ParDo(Slowly())
        pairs = p | "main" >> beam.Create([(key, n) for key in "abcdefgh" for n in range(3)])
        grouped = pairs | beam.GroupByKey()
        return grouped | "look" >> beam.Map(
            lambda pair, side: json.dumps([pair[0], sorted(pair[1]), len(side)]).encode(), beam.pvalue.AsList(slow)
        )

    run(tmp_path, build)
    assert sorted(script_job.rows(tmp_path)) == [[key, [0, 1, 2], 5] for key in "abcdefgh"]


def test_a_window_that_ends_at_the_beginning_of_1970_is_waited_for_too() -> None:
    class Table:
        def window_for(self, main_window: Any) -> Any:
            return window.IntervalWindow(Timestamp(micros=-9), Timestamp(micros=1))

    plan = SimpleNamespace(label="side", triggered=False)
    side = Side(plan, Table(), watermark_us=-5, is_new=False, left_us=-10)  # type: ignore[arg-type]
    assert _ready_at([side])(window.GlobalWindow()) == {"side": 0}
    later = replace(side, watermark_us=1)
    assert _ready_at([replace(later, left_us=-4)])(window.GlobalWindow()) == {}
    assert _ready_at([replace(later, left_us=0)])(window.GlobalWindow()) == {}, "late, but allowed"
    assert _ready_at([replace(later, left_us=1)])(window.GlobalWindow()) is None
