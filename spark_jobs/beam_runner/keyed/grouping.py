"""GroupByKey with windows and triggers, on persisted panes.

The firing logic is Beam's `GeneralTriggerDriver`. What it lacks is added here: windows are collected when they expire
(end + allowed lateness), with a last pane of what has not been fired (beam#20165); processing-time timers fire with the
watermark as it is instead of the wall clock's time (Beam passes the latter on as a watermark, and pane timing and holds
come out wrong); and its in-memory state is kept as bytes written by coders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.coders import FastPrimitivesCoder
from apache_beam.transforms import trigger
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.beam_internals import TriggerDriver, last_us
from spark_jobs.beam_runner.bundles.spool import Data
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, NEVER_US, expiry_us, micros, whole_millis
from spark_jobs.beam_runner.keyed.grouped import runs_by_key
from spark_jobs.beam_runner.keyed.state import PANE, TIMES, KeyGroup
from spark_jobs.beam_runner.keyed.values import ValueDecoder

_WINDOW_IDS = trigger.MergeableStateAdapter.WINDOW_IDS.tag
_ELEMENTS = trigger.GeneralTriggerDriver.ELEMENTS.tag
_primitives = FastPrimitivesCoder()


class _Clock:
    """The processing time that triggers see: that of the epoch, the same in every task."""

    now = Timestamp(micros=0)

    def time(self) -> Timestamp:
        return self.now


class PaneStore:
    """Bytes <-> Beam's in-memory trigger state of one key."""

    def __init__(self, element_impl: Any, window_impl: Any, lateness_us: int) -> None:
        self.element_impl, self.window_impl, self.lateness_us = element_impl, window_impl, lateness_us

    def encode(self, state: Any) -> bytes:
        windows = [(self.window_impl.encode(w), list(ids)) for w, ids in self.windows(state).items()]
        values = [
            (
                window_id,
                tag,
                [self.element_impl.encode_nested(v) for v in some]
                if tag == _ELEMENTS
                else [v.micros if isinstance(v, Timestamp) else v for v in some],
                bool(some) and isinstance(some[0], Timestamp),
            )
            for window_id, tags in state.state.items()
            for tag, some in tags.items()
        ]
        timers = [
            (window_id, name, domain, tag, micros(ts))
            for window_id, some in state.timers.items()
            for (name, domain, tag), ts in some.items()
        ]
        head = TIMES.pack(micros(state.get_earliest_hold()), *self._next_times(state))
        return head + bytes(_primitives.encode((windows, values, timers)))

    def decode(self, data: bytes) -> Any:
        windows, values, timers = _primitives.decode(data[TIMES.size :])
        state = trigger.InMemoryUnmergedState()
        state.global_state = {_WINDOW_IDS: {self.window_impl.decode(w): ids for w, ids in windows}}
        for window_id, tag, some, are_times in values:
            if tag == _ELEMENTS:
                some = [self.element_impl.decode_nested(v) for v in some]
            elif are_times:
                some = [Timestamp(micros=v) for v in some]
            state.state[window_id][tag] = some
        for window_id, name, domain, tag, at in timers:
            state.timers[window_id][name, domain, tag] = Timestamp(micros=at)
        return state

    def expiry_us(self, window: Any) -> int:
        """The watermark at which a window expires.

        Not an instant later: what it emits then is not late for the next grouping, which is at an earlier watermark.
        """
        return expiry_us(last_us(window), self.lateness_us)

    @staticmethod
    def windows(state: Any) -> dict[Any, list[Any]]:
        """Window -> the ids of its state; more than one after a merge."""
        windows: dict[Any, list[Any]] = state.global_state.get(_WINDOW_IDS, {})
        return windows

    def _next_times(self, state: Any) -> tuple[int, int]:
        event = min((self.expiry_us(w) for w in self.windows(state)), default=NEVER_US)
        real = NEVER_US
        for timers in state.timers.values():
            for (_, domain, _), at in timers.items():
                if domain == TimeDomain.REAL_TIME:
                    real = min(real, micros(at))
                else:
                    event = min(event, micros(at))
        return event, real


class PaneDriver:
    """Takes one key group of a grouping through an epoch: elements at the old watermark, then timers up to the new."""

    def __init__(self, windowing: Any, key_impl: Any, element_impl: Any, value_coder: Any) -> None:
        self._clock = _Clock()
        self._driver = TriggerDriver(windowing, self._clock)
        self._may_lose = windowing.triggerfn.may_lose_data(windowing) != trigger.DataLossReason.NO_POTENTIAL_LOSS
        self._decode_key = key_impl.decode_nested
        self._decoder = ValueDecoder(value_coder)
        window_impl = windowing.windowfn.get_window_coder().get_impl()
        self.store = PaneStore(element_impl, window_impl, micros(windowing.allowed_lateness))
        self.dropped = 0

    def run(
        self, group: KeyGroup, blocks: Iterable[Data], old_us: int, new_us: int, now_us: int
    ) -> Iterator[WindowedValue]:
        """Yields the panes as windowed (key, values). `dropped` counts what arrived too late."""
        arrived = runs_by_key(blocks)
        times = group.times(PANE)
        due = times.reals.take_due(now_us) + times.events.take_due(new_us)
        for key in dict.fromkeys([*arrived, *(key for _, key in due)]):
            values = [value for part in arrived.pop(key, ()) for value in self._decoder.decode(*part)]
            in_time = [v for v in values if old_us < self.store.expiry_us(v.windows[0])]
            self.dropped += len(values) - len(in_time)
            stored = group.get(PANE, b"", key)
            panes, left = self.run_key(self._decode_key(key), stored, in_time, old_us, new_us, now_us)
            if left is None:
                group.drop(PANE, b"", key)
            else:
                group.put(PANE, b"", key, left)
            yield from panes

    def times(self, group: KeyGroup) -> tuple[int, int, int]:
        """(hold, next event-time timer or expiry, next processing-time timer) of a group after `run`."""
        times = group.times(PANE)
        return times.holds.least(), times.events.least(), times.reals.least()

    def run_key(
        self, key: Any, stored: bytes | None, values: list[WindowedValue], old_us: int, new_us: int, now_us: int
    ) -> tuple[list[WindowedValue], bytes | None]:
        """-> (panes as windowed (key, values), what to store: None if nothing is left)."""
        self._clock.now = Timestamp(micros=now_us)
        if stored is None and not values:
            return [], None
        if stored is None and old_us == MIN_US and new_us == MAX_US:
            # The key begins and ends in this epoch, as in any batch: nothing needs to be kept.
            return [_listed(key, pane) for pane in self._run_whole_key(values)], None
        state = trigger.InMemoryUnmergedState() if stored is None else self.store.decode(stored)
        old, new = Timestamp(micros=old_us), Timestamp(micros=new_us)
        panes = list(self._driver.process_elements(state, values, old, old)) if values else []
        panes += self._fire(state, old, new, new_us, now_us)
        panes += self._collect(state, new_us)
        keep = bool(state.global_state.get(_WINDOW_IDS))
        return [_listed(key, pane) for pane in panes], self.store.encode(state) if keep else None

    def _run_whole_key(self, values: list[WindowedValue]) -> list[WindowedValue]:
        """Both clocks jump from the beginning to the end of time, as Beam's model has it for batches.

        Beam's own `process_entire_key` fails on any trigger that sets a processing-time timer, and its driver for
        global windows in batches puts panes at the beginning of time.
        """
        begin = Timestamp(micros=MIN_US)
        state = trigger.InMemoryUnmergedState()
        panes = list(self._driver.process_elements(state, values, begin, begin))
        panes += self._fire(state, begin, None, MAX_US, MAX_US)
        return [*panes, *self._collect(state, MAX_US)]

    def _fire(
        self, state: Any, old: Timestamp, new: Timestamp | None, new_us: int, now_us: int
    ) -> Iterator[WindowedValue]:
        """Due timers one at a time in time order: a firing may set or clear others.

        `new`: the watermark that a firing sees; None = the time that its timer was set for.
        """
        while True:
            due = [
                (micros(old) if domain == TimeDomain.REAL_TIME else micros(at), index, window_id, name, domain, tag, at)
                for index, (window_id, timers) in enumerate(state.timers.items())
                for (name, domain, tag), at in timers.items()
                if micros(at) <= (now_us if domain == TimeDomain.REAL_TIME else new_us)
            ]
            if not due:
                return
            _, _, window_id, name, domain, tag, at = min(due, key=lambda d: d[:2])
            state.clear_timer(window_id, name, domain, tag)
            if not any(window_id in ids for ids in self.store.windows(state).values()):
                continue  # the window was merged away or collected since the timer was set
            if domain == TimeDomain.REAL_TIME:
                yield from self._fire_real_time(state, window_id, old)
            else:
                yield from self._driver.process_timer(window_id, name, domain, at, state, at if new is None else new)

    def _fire_real_time(self, state: Any, window_id: Any, watermark: Timestamp) -> Iterator[WindowedValue]:
        """A firing sees the watermark, never the timer's time: AfterWatermark would take it for the window's end."""
        driver, merged = self._driver, trigger.MergeableStateAdapter(state)
        window = merged.get_window(window_id)
        if merged.get_state(window, driver.TOMBSTONE):
            return
        context = merged.at(window, self._clock)
        if driver.trigger_fn.should_fire(TimeDomain.REAL_TIME, watermark, window, context):
            finished = driver.trigger_fn.on_fire(watermark, window, context)
            yield driver.pane(window, finished, merged, watermark)

    def _collect(self, state: Any, new_us: int) -> Iterator[WindowedValue]:
        """Drops expired windows, after their closing panes."""
        ids = state.global_state.get(_WINDOW_IDS) or {}
        for window in [w for w in ids if self.store.expiry_us(w) <= new_us]:
            if not self._may_lose or self._waits_for_a_clock(state, ids[window]):
                pane = self._driver.closing_pane(window, trigger.MergeableStateAdapter(state))
                if pane is not None:
                    yield pane
            for window_id in ids.pop(window):
                state.state.pop(window_id, None)
                state.timers.pop(window_id, None)

    @staticmethod
    def _waits_for_a_clock(state: Any, window_ids: list[Any]) -> bool:
        """Whether a processing-time timer would have fired later: of triggers that may lose data, these need not."""
        domains = (domain for window_id in window_ids for _, domain, _ in state.timers.get(window_id, ()))
        return TimeDomain.REAL_TIME in domains


def _listed(key: Any, pane: WindowedValue) -> WindowedValue:
    """The pane as (key, values), as any other runner hands it on: values as a list, and the time in whole milliseconds.

    Beam's windowed value coder, which this pane does not pass, drops the rest: a window's end is 3.999 s, not 3.999999.
    """
    at = Timestamp(micros=whole_millis(pane.timestamp.micros))
    values = pane.value if isinstance(pane.value, list) else list(pane.value)
    return WindowedValue((key, values), at, pane.windows, pane.pane_info)
