"""Bundles of stages with keyed state: elements at the previous epoch's input watermark, then time moves on.

Everything that the new watermark makes due (timers, panes, expiry of windows) happens in the same bundle, so an epoch
leaves nothing half done. What an epoch costs depends on the keys that it touches, not on those that are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spark_jobs.beam_runner.beam_internals import last_us, monitoring_infos
from spark_jobs.beam_runner.bundles.bundle import BundleResult, StageProcessor
from spark_jobs.beam_runner.bundles.exchange import Row
from spark_jobs.beam_runner.bundles.spool import Data
from spark_jobs.beam_runner.checkpoint.manifest import KeyGroupMeta
from spark_jobs.beam_runner.clock import MIN_US, expiry_us, micros
from spark_jobs.beam_runner.keyed.fixed_panes import FixedPanes
from spark_jobs.beam_runner.keyed.grouped import runs_by_key
from spark_jobs.beam_runner.keyed.grouping import PaneDriver
from spark_jobs.beam_runner.keyed.session_panes import SessionPanes
from spark_jobs.beam_runner.keyed.state import TIMER, USER, KeyGroup
from spark_jobs.beam_runner.keyed.state_files import StateCache
from spark_jobs.beam_runner.keyed.timers import TimerService
from spark_jobs.beam_runner.keyed.values import ValueDecoder

if TYPE_CHECKING:
    from spark_jobs.beam_runner.bundles.order import EpochOrder

LATE_NAMESPACE, LATE_NAME = "beam_runner", "droppedDueToLateness"

Panes = FixedPanes | SessionPanes | PaneDriver
Times = tuple[int, int, int]  # hold, next event-time, next processing-time


def load_groups(cache: StateCache, order: EpochOrder, stage: str, numbers: Iterable[int]) -> dict[int, KeyGroup]:
    metas = order.groups.get(stage, {})
    return {
        number: cache.take(order.checkpoint, stage, number, metas.get(number, KeyGroupMeta()).chain)
        for number in sorted(numbers)
    }


def pane_driver(operation: Any) -> Panes:
    """What groups the input of a stage behind a GroupByKey; may be kept from bundle to bundle."""
    if operation.layout.by_window:
        kind = SessionPanes if operation.windowing.windowfn.is_merging() else FixedPanes
        return kind(operation.windowing, operation.key_impl, operation.element_coder)
    return PaneDriver(operation.windowing, operation.key_impl, operation.element_impl, operation.value_coder)


def run_grouping(
    processor: StageProcessor,
    driver: Panes,
    groups: dict[int, KeyGroup],
    rows: list[Row],
    old_us: Mapping[int, int],
    new_us: int,
    now_us: int,
) -> tuple[BundleResult, dict[int, Times]]:
    """A stage behind a GroupByKey: one pane per firing of a key's windows. `old_us`: by key group."""
    blocks = _blocks(rows)
    driver.dropped = 0

    def feed() -> None:
        for number, group in groups.items():
            group_us = old_us[number]
            panes = driver.run(group, blocks.pop(number, []), group_us, max(group_us, new_us), now_us)
            processor.inputs[0].push(panes)

    result = processor.run(feed)
    return _with_dropped(result, processor, driver.dropped), {n: driver.times(group) for n, group in groups.items()}


def run_stateful(
    processor: StageProcessor,
    groups: dict[int, KeyGroup],
    key_groups: int,
    rows: list[Row],
    old_us: Mapping[int, int],
    new_us: int,
    now_us: int,
) -> tuple[BundleResult, dict[int, Times]]:
    """A stage that starts with a stateful DoFn. Elements of windows that have expired are dropped, as Beam says.

    `old_us`: by key group.
    """
    operation = processor.inputs[0]
    lateness_us = micros(operation.windowing.allowed_lateness)
    window_impl = operation.windowing.windowfn.get_window_coder().get_impl()
    processor.state.begin(groups, key_groups, operation.key_impl)
    timers = TimerService(processor, groups, operation.key_impl, key_groups, lateness_us)
    decoder = ValueDecoder(operation.windowed_coder)
    blocks = _blocks(rows)
    dropped = 0

    def feed() -> None:
        nonlocal dropped
        for number in sorted(blocks):
            for parts in runs_by_key(blocks.pop(number)).values():
                for part in parts:
                    values = decoder.decode(*part)
                    if old_us[number] > MIN_US:
                        in_time = [v for v in values if old_us[number] < expiry_us(last_us(v.windows[0]), lateness_us)]
                        dropped += len(values) - len(in_time)
                        values = in_time
                    operation.push(values)
        timers.fire_due(new_us, old_us, now_us)

    result = processor.run(feed)
    times: dict[int, Times] = {}
    for number, group in groups.items():
        _collect_windows(group, window_impl, lateness_us, new_us)
        due = group.times(TIMER)
        event_us = min(due.events.least(), group.expiries.least())
        times[number] = (due.holds.least(), event_us, due.reals.least())
    return _with_dropped(result, processor, dropped), times


def _blocks(rows: list[Row]) -> dict[int, list[Data]]:
    blocks: dict[int, list[Data]] = defaultdict(list)
    for number, _, block in rows:
        blocks[number].append(block)
    return blocks


def _collect_windows(group: KeyGroup, window_impl: Any, lateness_us: int, watermark_us: int) -> None:
    """Drops the user state of expired windows; their timers have fired. At the end of time all are expired."""
    for window in group.take_fresh_windows():
        if group.table(USER, window):  # else it is the timers' table, whose keys name their windows
            group.expiries.set(window, expiry_us(last_us(window_impl.decode_nested(window)), lateness_us))
    for window in group.expiries.take_due(watermark_us):
        group.drop_window(USER, window)


def late_elements(dropped: int, step: str) -> list[bytes]:
    """So many elements that were too late, as a metric of their step like any other."""
    if not dropped:
        return []
    info = monitoring_infos.int64_user_counter(LATE_NAMESPACE, LATE_NAME, dropped, ptransform=step)
    return [info.SerializeToString()]


def _with_dropped(result: BundleResult, processor: StageProcessor, dropped: int) -> BundleResult:
    return replace(result, metrics=[*result.metrics, *late_elements(dropped, processor.step)])
