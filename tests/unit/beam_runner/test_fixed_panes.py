"""The fast paths of GroupByKey yield, epoch by epoch, the panes that Beam's general trigger driver yields."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from apache_beam.coders import StrUtf8Coder, VarIntCoder
from apache_beam.coders.coders import WindowedValueCoder
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.trigger import AccumulationMode, DefaultTrigger
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    Sessions,
    SlidingWindows,
    TimestampCombiner,
    WindowFn,
)
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.keyed.fixed_panes import FixedPanes
from spark_jobs.beam_runner.keyed.grouped import GroupingWriter, Layout
from spark_jobs.beam_runner.keyed.grouping import PaneDriver
from spark_jobs.beam_runner.keyed.session_panes import SessionPanes
from spark_jobs.beam_runner.keyed.state import KeyGroup, encode_frame

Epoch = tuple[list[tuple[str, int, int]], int]  # (key, value, second) of each element; watermark (second) after it

elements = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 40)), max_size=6)
epochs = st.lists(st.tuples(elements, st.integers(0, 12)), min_size=1, max_size=8)  # (elements, watermark's step)
windowings = st.builds(
    Windowing,
    st.sampled_from(
        [FixedWindows(10), FixedWindows(7, offset=3), SlidingWindows(10, 5), GlobalWindows(), Sessions(2), Sessions(5)]
    ),
    st.just(DefaultTrigger()),
    st.sampled_from([AccumulationMode.DISCARDING, AccumulationMode.ACCUMULATING]),
    st.sampled_from(
        [
            TimestampCombiner.OUTPUT_AT_EOW,
            TimestampCombiner.OUTPUT_AT_EARLIEST,
            TimestampCombiner.OUTPUT_AT_LATEST,
        ]
    ),
    st.sampled_from([0, 3, 25]),
)
KEY, VALUE = StrUtf8Coder(), VarIntCoder()
ONLY_PANE = PaneInfo(True, True, PaneInfoTiming.ON_TIME, 0, 0)


def windowed(windowing: Windowing, key: str, value: int, second: int) -> WindowedValue:
    at = Timestamp(second)
    return WindowedValue((key, value), at, windowing.windowfn.assign(WindowFn.AssignContext(at)))


def blocks(windowing: Windowing, layout: Layout, some: list[tuple[str, int, int]]) -> list[bytes]:
    """What a writer makes of the elements; two flushes, so that a key's values come in parts."""
    sent: list[bytes] = []
    window_coder = windowing.windowfn.get_window_coder()
    whole = WindowedValueCoder(VALUE, window_coder).get_impl()
    plain = VALUE.get_impl()

    def encode(value: Any) -> bytes:
        if layout.by_window:
            return bytes(plain.encode_nested(value))
        return bytes(whole.encode_nested(value.with_value(value.value[1])))

    writer = GroupingWriter(
        layout, KEY.get_impl(), window_coder.get_impl(), encode, lambda _, block: sent.append(block)
    )
    for index, (key, value, second) in enumerate(some):
        writer.add(windowed(windowing, key, value, second))
        if index == 2:
            writer.flush()
    writer.flush()
    return sent


def shown(panes: Any) -> dict[tuple[str, Any], list[Any]]:
    """What can be seen of panes, in order by key and window, which have no order among each other."""
    by_slot: dict[tuple[str, Any], list[Any]] = defaultdict(list)
    for pane in panes:
        key, values = pane.value
        by_slot[key, pane.windows].append((pane.timestamp.micros, pane.pane_info, sorted(values)))
    return dict(by_slot)


def without_panes(found: dict[tuple[str, Any], list[Any]]) -> dict[tuple[str, Any], list[Any]]:
    return {slot: [(at, values) for at, _, values in panes] for slot, panes in found.items()}


def general(windowing: Windowing) -> PaneDriver:
    window_coder = windowing.windowfn.get_window_coder()
    return PaneDriver(windowing, KEY.get_impl(), VALUE.get_impl(), WindowedValueCoder(VALUE, window_coder))


def reload(group: KeyGroup) -> KeyGroup:
    """As a worker that has never seen the group reads it."""
    fresh = KeyGroup()
    fresh.apply(encode_frame(group.everything()), "test")
    return fresh


@settings(max_examples=300, deadline=None)
@given(windowing=windowings, steps=epochs, cold=st.booleans(), ends=st.booleans())
@example(windowing=Windowing(GlobalWindows()), steps=[([("a", 0, 0)], 0)], cold=False, ends=True)
def test_panes_equal_those_of_the_general_driver(
    windowing: Windowing, steps: list[tuple[list[tuple[str, int, int]], int]], cold: bool, ends: bool
) -> None:
    timed = windowing.timestamp_combiner != TimestampCombiner.OUTPUT_AT_EOW
    merges = windowing.windowfn.is_merging()
    fast = (SessionPanes if merges else FixedPanes)(windowing, KEY.get_impl(), VALUE)
    slow = general(windowing)
    fast_group, slow_group = KeyGroup(), KeyGroup()
    old = MIN_US
    for number, (some, step) in enumerate(steps):
        last = ends and number == len(steps) - 1
        new = MAX_US if last else max(old, 0) + step * 1_000_000
        mine = shown(fast.run(fast_group, blocks(windowing, Layout(True, timed), some), old, new, 0))
        truth = shown(slow.run(slow_group, blocks(windowing, Layout(), some), old, new, 0))
        if windowing.is_default() and (old, new) == (MIN_US, MAX_US):  # of a batch; the driver does not know the last
            assert all(pane == ONLY_PANE for panes in mine.values() for _, pane, _ in panes)
            mine, truth = without_panes(mine), without_panes(truth)
        assert mine == truth
        assert fast.dropped == slow.dropped
        hold, event, _ = fast.times(fast_group)
        general_hold, general_event, _ = slow.times(slow_group)
        assert event == general_event
        if merges or windowing.timestamp_combiner == TimestampCombiner.OUTPUT_AT_LATEST:
            assert hold >= general_hold  # Beam keeps holds that a later one replaced; ours moves on
        else:
            assert hold == general_hold
        assert bool(fast_group.entries) == bool(slow_group.entries)
        if cold:
            fast_group = reload(fast_group)
        old = new


def test_windows_that_close_in_one_epoch_fire_in_time_order() -> None:
    windowing = Windowing(FixedWindows(10))
    fast = FixedPanes(windowing, KEY.get_impl(), VALUE)
    some = [("a", 1, 35), ("b", 2, 5), ("a", 3, 25), ("a", 4, 1)]
    panes = list(fast.run(KeyGroup(), blocks(windowing, Layout(True), some), MIN_US, 50_000_000, 0))
    assert [int(pane.windows[0].start) for pane in panes] == [0, 0, 20, 30]


@pytest.mark.parametrize("window_fn", [FixedWindows(10), Sessions(9)], ids=["fixed", "sessions"])
@pytest.mark.parametrize("is_general", [False, True], ids=["bytes", "driver"])
def test_a_window_is_kept_for_as_long_as_its_elements_are_not_dropped(window_fn: Any, is_general: bool) -> None:
    """To the microsecond. The window is [0, 10) or [1, 10), and five seconds of lateness are allowed."""
    windowing = Windowing(window_fn, allowed_lateness=5)
    fast = SessionPanes if windowing.windowfn.is_merging() else FixedPanes
    panes: Any = general(windowing) if is_general else fast(windowing, KEY.get_impl(), VALUE)
    layout = Layout(by_window=not is_general)
    expiry = 15_000_000
    for end, is_over in ((expiry - 1, False), (expiry, True)):
        group = KeyGroup()
        assert len(list(panes.run(group, blocks(windowing, layout, [("k", 1, 1)]), MIN_US, end, 0))) == 1
        assert bool(group.entries) != is_over
        panes.dropped = 0
        list(panes.run(group, blocks(windowing, layout, [("k", 2, 1)]), end, end, 0))
        assert panes.dropped == is_over


def test_late_elements_are_counted_once_each() -> None:
    windowing = Windowing(SlidingWindows(10, 5), DefaultTrigger(), AccumulationMode.DISCARDING)
    fast, group = FixedPanes(windowing, KEY.get_impl(), VALUE), KeyGroup()
    second = 1_000_000
    late = [("a", 1, 2), ("b", 1, 3), ("b", 2, 21)]  # both windows of the first two have expired; none of the third's
    assert list(fast.run(group, blocks(windowing, Layout(True), late), 20 * second, 21 * second, 0)) == []
    assert fast.dropped == 4


@pytest.mark.parametrize("count", [1, 100_001])
def test_a_key_with_many_values_is_one_group(count: int) -> None:
    windowing = Windowing(GlobalWindows())
    some = [("a", value & 127, 0) for value in range(count)]
    fast = FixedPanes(windowing, KEY.get_impl(), VALUE)
    (pane,) = fast.run(KeyGroup(), blocks(windowing, Layout(True), some), MIN_US, MAX_US, 0)
    assert list(pane.value[1]) == [value for _, value, _ in some]
