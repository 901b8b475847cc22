"""Triggers, accumulation and pane info. Programming guide, chapter 9; `Trigger`, `PaneInfo` and `Window` in the docs.

Triggers are evaluated per bundle, so one element a step makes counts exact.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterAll,
    AfterAny,
    AfterCount,
    AfterEach,
    AfterProcessingTime,
    AfterWatermark,
    Always,
    DefaultTrigger,
    OrFinally,
    Repeatedly,
    _Never,
)
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions, TimestampCombiner

from tests.model.script import Script, Step, at, step
from tests.model.stream import Build, Stage, on_spark

UNSAFE = "--allow_unsafe_triggers"  # triggers that finish may lose data; Beam wants to be told
DISCARDING, ACCUMULATING = AccumulationMode.DISCARDING, AccumulationMode.ACCUMULATING


def grouping(
    stage: Stage,
    script: list[Step],
    trigger: Any,
    mode: Any = DISCARDING,
    window: Any = None,
    lateness: float = 0,
    *,
    stays: bool = False,
) -> Build:
    """Script -> windows of ten seconds, or `window` -> group."""

    def build(p: beam.Pipeline) -> None:
        windowed = (
            p
            | Script(script, stays=stays)
            | beam.WindowInto(
                window or FixedWindows(10), trigger=trigger, accumulation_mode=mode, allowed_lateness=lateness
            )
        )
        stage.collect(windowed | beam.GroupByKey())

    return build


def one_by_one(count: int) -> list[Step]:
    """Elements 1, 2, .. count, each in an epoch of its own, all in [0, 10) and before the watermark."""
    return [step(at(1, ("k", n))) for n in range(1, count + 1)]


def contents(stage: Stage) -> list[tuple[int, list[int]]]:
    return [(o.epoch, o.value[1]) for o in stage.outs()]


EARLY_AND_LATE = [
    step(at(1, ("k", 1)), watermark=2),
    step(at(2, ("k", 2)), watermark=3),
    step(at(3, ("k", 3)), watermark=4),
    step(watermark=10),
    step(at(5, ("k", 4)), watermark=11),
    step(watermark=35),
    step(at(6, ("k", 5))),
]


@on_spark
@pytest.mark.parametrize(
    ("mode", "values"),
    [(DISCARDING, [[1, 2], [3], [4]]), (ACCUMULATING, [[1, 2], [1, 2, 3], [1, 2, 3, 4]])],
    ids=["discarding", "accumulating"],
)
def test_early_on_time_and_late_panes(stage: Stage, mode: Any, values: list[list[int]]) -> None:
    trigger = AfterWatermark(early=AfterCount(2), late=AfterCount(1))
    stage.play(grouping(stage, EARLY_AND_LATE, trigger, mode, lateness=20))
    assert [(o.epoch, o.value, o.timing, o.index, o.on_time_index, o.first, o.last) for o in stage.outs()] == [
        (1, ("k", values[0]), "EARLY", 0, -1, True, False),
        (3, ("k", values[1]), "ON_TIME", 1, 0, False, False),
        (4, ("k", values[2]), "LATE", 2, 1, False, False),  # 5 came after the window had expired
    ]


@pytest.mark.parametrize(
    ("mode", "values"), [(DISCARDING, []), (ACCUMULATING, [1])], ids=["discarding", "accumulating"]
)
def test_the_on_time_pane_is_fired_even_if_it_has_nothing_new(stage: Stage, mode: Any, values: list[int]) -> None:
    """`OnTimeBehavior.FIRE_ALWAYS`, the default."""
    script = [step(at(1, ("k", 1)), watermark=2), step(watermark=10), step(watermark=20), step()]
    stage.play(grouping(stage, script, AfterWatermark(early=AfterCount(1)), mode))
    assert [(o.epoch, o.value, o.timing, o.index) for o in stage.outs()] == [
        (0, ("k", [1]), "EARLY", 0),
        (1, ("k", values), "ON_TIME", 1),
    ]


def test_the_default_trigger_fires_for_late_data_too(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=10),
        step(at(2, ("k", 2)), watermark=12),
        step(watermark=13),
        step(at(3, ("k", 3)), at(4, ("k", 4)), watermark=16),
        step(at(5, ("k", 5)), watermark=17),
        step(),
    ]
    stage.play(grouping(stage, script, DefaultTrigger(), lateness=5))
    assert [(o.epoch, o.value, o.timing, o.index, o.on_time_index) for o in stage.outs()] == [
        (0, ("k", [1]), "ON_TIME", 0, 0),
        (1, ("k", [2]), "LATE", 1, 1),
        (3, ("k", [3, 4]), "LATE", 2, 2),
    ]


def test_a_watermark_trigger_without_late_firings_closes_its_window(stage: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=10), step(at(2, ("k", 2)), watermark=12), step()]
    stage.play(grouping(stage, script, AfterWatermark(), lateness=100), UNSAFE)
    assert [(o.value, o.timing, o.first, o.last) for o in stage.outs()] == [(("k", [1]), "ON_TIME", True, True)]


@pytest.mark.xfail(strict=True, reason="Beam's ReshuffleTest wants on-time panes that are not the last")
def test_the_on_time_pane_is_the_last_if_no_lateness_is_allowed(whole: Stage) -> None:
    """`PaneInfo.isLast`: "the last pane that will be produced in the associated window"."""
    whole.play(grouping(whole, [step(at(1, ("k", 1)), watermark=12), step()], DefaultTrigger()))
    assert [o.last for o in whole.outs()] == [True]


def test_a_count_that_is_not_repeated_fires_once(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(5), AfterCount(2)), UNSAFE)
    assert contents(stage) == [(1, [1, 2])]
    assert stage.outs()[0].last


def test_a_repeated_count_discards_what_it_fired(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(4), Repeatedly(AfterCount(2)), window=GlobalWindows()))
    assert contents(stage) == [(1, [1, 2]), (3, [3, 4])]
    assert [(o.timing, o.index, o.first) for o in stage.outs()] == [("EARLY", 0, True), ("EARLY", 1, False)]


def test_a_repeated_count_accumulates(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(4), Repeatedly(AfterCount(2)), ACCUMULATING, window=GlobalWindows()))
    assert contents(stage) == [(1, [1, 2]), (3, [1, 2, 3, 4])]


def test_a_count_is_at_least_that_many(whole: Stage) -> None:
    script = [step(at(1, ("k", 1)), at(1, ("k", 2)), at(1, ("k", 3))), step(at(1, ("k", 4))), step(at(1, ("k", 5)))]
    whole.play(grouping(whole, script, Repeatedly(AfterCount(2))))
    # All of a bundle is in when the trigger is asked; how many panes that makes is the runner's choice.
    seen = [value for _, values in contents(whole) for value in values]
    assert seen == [1, 2, 3, 4, 5]
    assert all(len(values) >= 2 for _, values in contents(whole))


def test_what_a_trigger_has_not_fired_comes_when_the_window_expires(stage: Stage) -> None:
    """`ClosingBehavior.FIRE_IF_NON_EMPTY`, the default; "Repeatedly will .. pick up whatever is left at GC"."""
    script = [*one_by_one(3), step(watermark=30), step()]
    stage.play(grouping(stage, script, Repeatedly(AfterCount(2)), lateness=5))
    assert contents(stage) == [(1, [1, 2]), (3, [3])]
    assert stage.outs()[1].last


@pytest.mark.parametrize(
    ("mode", "values"), [(DISCARDING, [[1, 2], [3]]), (ACCUMULATING, [[1, 2], [1, 2, 3]])], ids=["discarding", "all"]
)
def test_the_last_pane_is_there_if_it_has_something_new(stage: Stage, mode: Any, values: list[list[int]]) -> None:
    trigger = Repeatedly(AfterCount(2))
    script = [step(at(1, ("k", 1)), at(1, ("old", 1))), step(at(1, ("k", 2)), at(1, ("old", 2))), step(at(1, ("k", 3)))]
    stage.play(grouping(stage, script, trigger, mode))
    assert [(o.value[1], o.timing, o.index, o.last) for o in stage.outs() if o.value[0] == "k"] == [
        (values[0], "EARLY", 0, False),
        (values[1], "ON_TIME", 1, True),
    ]
    assert [o.value for o in stage.outs() if o.value[0] == "old"] == [("old", [1, 2])]


def test_what_a_count_that_is_not_repeated_waits_for_is_dropped(stage: Stage) -> None:
    """Beam's `test_after_count` wants it. Such triggers have to be allowed by name."""
    stage.play(grouping(stage, one_by_one(2), AfterCount(3)), UNSAFE)
    assert contents(stage) == []


HOUR = AfterProcessingTime(3600)


WAITS_AN_HOUR = {  # trigger -> the panes of 1, 2, 3
    "repeated": (Repeatedly(HOUR), [[1, 2, 3]]),
    "once": (HOUR, [[1, 2, 3]]),
    "or a count": (Repeatedly(AfterAny(HOUR, AfterCount(2))), [[1, 2], [3]]),
    "or a count, once": (AfterAny(HOUR, AfterCount(9)), [[1, 2, 3]]),
    "after a count": (AfterEach(AfterCount(1), HOUR), [[1], [2, 3]]),
    "and a count": (AfterAll(HOUR, AfterCount(3)), [[1, 2, 3]]),
    "at last": (OrFinally(Repeatedly(AfterCount(2)), HOUR), [[1, 2], [3]]),
    "early": (AfterWatermark(early=HOUR), [[1, 2, 3]]),
}


@on_spark
@pytest.mark.parametrize("window", [FixedWindows(10), GlobalWindows(), Sessions(10)], ids=lambda w: type(w).__name__)
def test_what_waits_for_a_clock_comes_when_the_window_ends(stage: Stage, window: Any) -> None:
    """Also when the whole stream does: nobody waits an hour for its last elements."""

    def build(p: beam.Pipeline) -> None:
        script = p | Script([*one_by_one(3), step()])
        for name, (trigger, _) in WAITS_AN_HOUR.items():
            windowed = script | name >> beam.WindowInto(window, trigger=trigger, accumulation_mode=DISCARDING)
            stage.collect(windowed | f"group {name}" >> beam.GroupByKey(), name)

    stage.play(build, UNSAFE)
    found = {name: [out.value[1] for out in stage.outs(name)] for name in WAITS_AN_HOUR}
    assert found == {name: panes for name, (_, panes) in WAITS_AN_HOUR.items()}
    assert all(stage.outs(name)[-1].last for name in WAITS_AN_HOUR)


def test_what_waits_for_a_clock_comes_when_the_window_expires(stage: Stage) -> None:
    trigger = AfterWatermark(late=HOUR)
    script = [
        step(at(1, ("k", 1)), watermark=11),
        step(at(2, ("k", 2)), watermark=12),
        step(watermark=14),
        step(watermark=16),
        step(watermark=17),
    ]
    stage.play(grouping(stage, script, trigger, lateness=5))
    assert [(o.epoch, o.value[1], o.timing, o.last) for o in stage.outs()] == [
        (0, [1], "ON_TIME", False),
        (3, [2], "LATE", True),
    ]


def test_the_last_pane_is_not_late_for_the_next_grouping(stage: Stage) -> None:
    """Of late elements, which hold no watermark; that one stops just where the window expires."""
    script = [
        step(at(1, ("k", 1)), watermark=11),
        step(at(2, ("k", 2)), watermark=12),
        step(watermark=15),
        step(watermark=17),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        trigger = AfterWatermark(late=AfterCount(2))
        windowed = (
            p
            | Script(script)
            | beam.WindowInto(
                FixedWindows(10),
                trigger=trigger,
                accumulation_mode=DISCARDING,
                timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
                allowed_lateness=5,
            )
        )
        again = windowed | beam.GroupByKey() | beam.FlatMapTuple(lambda key, values: [(key, v) for v in values])
        stage.collect(again | "again" >> beam.GroupByKey())

    stage.play(build)
    assert [values for _, values in contents(stage)] == [[1], [2]]


def test_a_drain_leaves_nothing_that_waits_for_a_clock(whole: Stage) -> None:
    whole.drain(grouping(whole, one_by_one(3), Repeatedly(HOUR), window=GlobalWindows(), stays=True), after_epochs=3)
    assert [values for _, values in contents(whole)] == [[1, 2, 3]]


def test_always_fires_for_each_bundle(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(3), Always(), window=GlobalWindows()))
    assert contents(stage) == [(0, [1]), (1, [2]), (2, [3])]


def test_never_fires_when_the_window_expires_only(stage: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=10), step(at(2, ("k", 2)), watermark=14), step(watermark=16), step()]
    stage.play(grouping(stage, script, _Never(), lateness=5), UNSAFE)
    assert contents(stage) == [(2, [1, 2])]


def test_after_each_goes_from_trigger_to_trigger(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(8), Repeatedly(AfterEach(AfterCount(1), AfterCount(3)))))
    assert contents(stage) == [(0, [1]), (3, [2, 3, 4]), (4, [5]), (7, [6, 7, 8])]


def test_after_each_ends_with_its_last_trigger(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(5), AfterEach(AfterCount(2), AfterCount(1))), UNSAFE)
    assert contents(stage) == [(1, [1, 2]), (2, [3])]
    assert [o.last for o in stage.outs()] == [False, True]


def test_after_any_fires_by_count_or_by_watermark(stage: Stage) -> None:
    script = [*one_by_one(4), step(watermark=10), step()]
    stage.play(grouping(stage, script, Repeatedly(AfterAny(AfterCount(3), AfterWatermark()))))
    assert [(o.epoch, o.value[1], o.timing) for o in stage.outs()] == [(2, [1, 2, 3], "EARLY"), (4, [4], "ON_TIME")]


def test_after_all_waits_for_count_and_watermark(stage: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=10), step(watermark=11), step(at(2, ("k", 2)), watermark=12), step()]
    stage.play(grouping(stage, script, Repeatedly(AfterAll(AfterCount(2), AfterWatermark())), lateness=50))
    assert contents(stage) == [(2, [1, 2])]
    assert stage.outs()[0].timing != "EARLY"


def test_after_all_fires_at_the_watermark_if_the_count_is_reached(stage: Stage) -> None:
    script = [*one_by_one(3), step(watermark=10), step()]
    stage.play(grouping(stage, script, Repeatedly(AfterAll(AfterCount(2), AfterWatermark()))))
    assert [(o.epoch, o.value[1], o.timing) for o in stage.outs()] == [(3, [1, 2, 3], "ON_TIME")]


def test_or_finally_ends_the_main_trigger(stage: Stage) -> None:
    stage.play(grouping(stage, one_by_one(7), OrFinally(Repeatedly(AfterCount(2)), AfterCount(5))), UNSAFE)
    assert contents(stage) == [(1, [1, 2]), (3, [3, 4]), (4, [5])]


def test_early_panes_of_a_session_that_grows(stage: Stage) -> None:
    script = [step(at(1, ("k", 1)), watermark=2), step(at(4, ("k", 2)), watermark=5), step(watermark=9), step()]
    stage.play(grouping(stage, script, AfterWatermark(early=AfterCount(1)), ACCUMULATING, Sessions(5)))
    assert [(o.epoch, o.value[1], o.window, o.timing) for o in stage.outs()] == [
        (0, [1], (1, 6), "EARLY"),
        (1, [1, 2], (1, 9), "EARLY"),
        (2, [1, 2], (1, 9), "ON_TIME"),
    ]


def test_a_late_element_joins_an_open_session_and_refires_it(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=6),  # [1, 6) fires
        step(at(4, ("k", 2)), watermark=7),  # behind the watermark; merged to [1, 9), which is still open
        step(watermark=9),
        step(),
    ]
    stage.play(grouping(stage, script, DefaultTrigger(), ACCUMULATING, Sessions(5), lateness=20))
    assert [(o.epoch, o.value[1], o.window) for o in stage.outs()] == [(0, [1], (1, 6)), (2, [1, 2], (1, 9))]


def test_keys_have_panes_of_their_own(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 1)), at(1, ("b", 2)), watermark=2),
        step(at(1, ("a", 3)), watermark=3),
        step(watermark=10),
        step(),
    ]
    stage.play(grouping(stage, script, AfterWatermark(early=AfterCount(2)), DISCARDING))
    assert [(o.epoch, o.value, o.timing, o.index) for o in stage.outs()] == [
        (1, ("a", [1, 3]), "EARLY", 0),
        (2, ("a", []), "ON_TIME", 1),
        (2, ("b", [2]), "ON_TIME", 0),
    ]


def test_processing_time_fires_after_the_delay_and_with_what_came_meanwhile(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1))),
        step(at(1, ("k", 2)), pause_s=1.7),
        step(at(1, ("k", 3)), pause_s=1.7),
        step(watermark=5),
    ]
    stage.play(grouping(stage, script, Repeatedly(AfterProcessingTime(1)), window=GlobalWindows(), stays=True))
    assert [o.value[1] for o in stage.outs()] == [[1, 2], [3]]
    assert [(o.timing, o.index) for o in stage.outs()] == [("EARLY", 0), ("EARLY", 1)]


def test_early_panes_by_processing_time_then_one_on_time(whole: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), watermark=2, pause_s=1.7),
        step(at(3, ("k", 2)), watermark=4),
        step(watermark=10),
        step(watermark=11),
    ]
    trigger = AfterWatermark(early=AfterProcessingTime(1))
    whole.play(grouping(whole, script, trigger, ACCUMULATING, stays=True))
    assert [(o.value[1], o.timing) for o in whole.outs()] == [([1], "EARLY"), ([1, 2], "ON_TIME")]
