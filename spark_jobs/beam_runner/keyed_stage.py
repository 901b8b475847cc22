"""Bundles of stages with keyed state: elements at the previous epoch's input watermark, then time moves on.

Everything that the new watermark makes due (timers, panes, expiry of windows) happens in the same bundle, so an epoch
leaves nothing half done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from spark_jobs.beam_runner.bundle import BundleResult, StageProcessor
from spark_jobs.beam_runner.clock import MAX_US, NEVER_US, micros
from spark_jobs.beam_runner.exchange import Row
from spark_jobs.beam_runner.grouping import PaneDriver, PaneStore
from spark_jobs.beam_runner.manifest import KeyGroupMeta
from spark_jobs.beam_runner.state import PANE, TIMER, USER, KeyGroup, StateCache
from spark_jobs.beam_runner.timers import TimerService, next_times
from spark_jobs.beam_runner.user_state import window_of

if TYPE_CHECKING:
    from spark_jobs.beam_runner.task import EpochOrder

Times = tuple[int, int, int]  # hold, next event-time, next processing-time


def load_groups(cache: StateCache, order: EpochOrder, stage: str, numbers: Iterable[int]) -> dict[int, KeyGroup]:
    metas = order.groups.get(stage, {})
    return {
        number: cache.take(order.checkpoint, stage, number, metas.get(number, KeyGroupMeta()).chain)
        for number in sorted(numbers)
    }


def run_grouping(
    processor: StageProcessor,
    driver: PaneDriver,
    groups: dict[int, KeyGroup],
    rows: list[Row],
    old_us: int,
    new_us: int,
    now_us: int,
) -> tuple[BundleResult, dict[int, Times]]:
    """A stage behind a GroupByKey: one pane per firing of a key's windows."""
    operation = processor.inputs[0]
    arrived: dict[int, dict[bytes, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for number, key, data in rows:
        arrived[number][key].append(data)

    def feed() -> None:
        decode = operation.value_impl.decode_nested
        for number, group in groups.items():
            stored = group.entries[PANE]
            mine = arrived.get(number, {})
            woken = [key for key, pane in stored.items() if key not in mine and _pane_is_due(pane, new_us, now_us)]
            for key in [*mine, *woken]:
                panes, left = driver.run_key(
                    operation.key_impl.decode_nested(key),
                    stored.get(key),
                    [decode(data) for data in mine.get(key, ())],
                    old_us,
                    new_us,
                    now_us,
                )
                if left is None:
                    group.drop(PANE, key)
                else:
                    group.put(PANE, key, left)
                operation.push(panes)

    result = processor.run(feed)
    times: dict[int, Times] = {}
    for number, group in groups.items():
        each = [PaneStore.times(pane) for pane in group.entries[PANE].values()]
        times[number] = (
            min((t[0] for t in each), default=MAX_US),
            min((t[1] for t in each), default=NEVER_US),
            min((t[2] for t in each), default=NEVER_US),
        )
    return result, times


def _pane_is_due(pane: bytes, new_us: int, now_us: int) -> bool:
    _, event, real = PaneStore.times(pane)
    return event <= new_us or real <= now_us


def run_stateful(
    processor: StageProcessor,
    groups: dict[int, KeyGroup],
    key_groups: int,
    rows: list[Row],
    old_us: int,
    new_us: int,
    now_us: int,
) -> tuple[BundleResult, dict[int, Times]]:
    """A stage that starts with a stateful DoFn. Elements of windows that have expired are dropped, as Beam says."""
    operation = processor.inputs[0]
    lateness_us = micros(operation.windowing.allowed_lateness)
    window_impl = operation.windowing.windowfn.get_window_coder().get_impl()
    processor.state.begin(groups, key_groups, operation.key_impl)
    timers = TimerService(processor, groups, operation.key_impl, key_groups)

    def feed() -> None:
        by_key: dict[bytes, list[bytes]] = defaultdict(list)
        for _, key, data in rows:
            by_key[key].append(data)
        for chunks in by_key.values():
            for chunk in chunks:
                operation.push(
                    v for v in operation.decode(chunk) if micros(v.windows[0].max_timestamp()) + lateness_us >= old_us
                )
        timers.fire_due(new_us, old_us, now_us)

    result = processor.run(feed)
    times: dict[int, Times] = {}
    for number, group in groups.items():
        expiry_us = _collect_windows(group, window_impl, lateness_us, new_us)
        hold, event, real = next_times(group)
        times[number] = (hold, min(event, expiry_us), real)
    return result, times


def _collect_windows(group: KeyGroup, window_impl: Any, lateness_us: int, watermark_us: int) -> int:
    """Drops the state of expired windows; -> when the next one expires. At the end of time everything expires."""
    if watermark_us >= MAX_US:
        for kind in (USER, TIMER):
            for key in list(group.entries[kind]):
                group.drop(kind, key)
        return NEVER_US
    next_expiry_us = NEVER_US
    expiry: dict[bytes, int] = {}
    for key in list(group.entries[USER]):
        window = window_of(key)
        if window not in expiry:
            expiry[window] = micros(window_impl.decode(window).max_timestamp()) + lateness_us + 1
        if expiry[window] <= watermark_us:
            group.drop(USER, key)
        else:
            next_expiry_us = min(next_expiry_us, expiry[window])
    return min(next_expiry_us, NEVER_US)
