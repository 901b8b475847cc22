"""GroupByKey for the default trigger on windows that do not merge: no trigger driver, no decoding of what waits.

Panes are those of Beam's `GeneralTriggerDriver` (tests compare the two): one on-time pane when the watermark passes
the window's end, one late pane per epoch that brings late elements, nothing after end + allowed lateness. What waits
is kept as bytes: a small head per window and key, and the concatenated encoded elements, which are only ever added to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from apache_beam.transforms.trigger import BatchGlobalTriggerDriver
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue
from apache_beam.utils.windowed_value import create as windowed

from spark_jobs.beam_runner.beam_internals import last_us
from spark_jobs.beam_runner.bundles.spool import Data
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, NEVER_US, expiry_us, micros, whole_millis
from spark_jobs.beam_runner.keyed.grouped import open_blocks
from spark_jobs.beam_runner.keyed.panes import DriverlessPanes
from spark_jobs.beam_runner.keyed.state import ELEMENTS, PANE, KeyGroup
from spark_jobs.beam_runner.keyed.values import Part, joined

_HEAD = struct.Struct("<qqqIQ")  # hold, next event time, next processing time; panes fired, elements kept
_KNOWN_WINDOWS = 10_000  # decoded windows kept at hand
_ON_TIME = PaneInfo(True, False, PaneInfoTiming.ON_TIME, 0, 0)
_FIRST_BUT_LATE = PaneInfo(True, False, PaneInfoTiming.LATE, 0, 0)


Arrived = dict[bytes, dict[bytes, list[Part]]]  # window -> key -> values


class _Window(NamedTuple):
    """A window and the watermarks that matter to it, in microseconds."""

    name: bytes  # its encoding
    window: Any
    end: int
    last: int  # the latest timestamp in it
    expiry: int  # elements are dropped and state goes when the watermark reaches this


class FixedPanes(DriverlessPanes):
    """Of windows that do not merge."""

    def __init__(self, windowing: Any, key_impl: Any, value_coder: Any) -> None:
        super().__init__(windowing, key_impl, value_coder)
        self._is_default = windowing.is_default()
        self._windows: dict[bytes, _Window] = {}
        self._holds: dict[tuple[bytes, bytes], int] = {}  # of what arrived, for combiners that look at timestamps

    def run(
        self, group: KeyGroup, blocks: Iterable[Data], old_us: int, new_us: int, _now_us: int
    ) -> Iterator[WindowedValue]:
        """Yields the panes as windowed (key, values). `dropped` counts what arrived too late."""
        self._holds.clear()
        arrived = self._sort_in(blocks, old_us)
        if self._is_default and old_us == MIN_US and new_us == MAX_US and not group.entries:
            yield from self._whole(arrived)
            return
        times = group.times(PANE)
        closing: dict[bytes, list[bytes]] = {}
        for name, keys in arrived.items():
            window = self._window(name)
            if window.end <= old_us:
                for key, parts in keys.items():
                    yield self._fire(group, window, key, parts, new_us, on_time=False)
            elif window.end <= new_us:
                closing[name] = list(keys)
            else:
                for key, parts in keys.items():
                    self._keep(group, window, key, parts)
        for name, key in times.events.take_due(new_us):
            if key not in arrived.get(name, ()):
                closing.setdefault(name, []).append(key)
        for window in sorted(map(self._window, closing), key=lambda w: (w.end, w.name)):
            keys = arrived.get(window.name, {})
            for key in closing[window.name]:
                yield self._fire(group, window, key, keys.get(key), new_us, on_time=True)
        self._collect(group, new_us)

    def times(self, group: KeyGroup) -> tuple[int, int, int]:
        """(hold, next event-time timer or expiry, next processing-time timer) of a group after `run`."""
        times = group.times(PANE)
        return times.holds.least(), min(times.events.least(), group.expiries.least()), NEVER_US

    def _whole(self, arrived: Arrived) -> Iterator[WindowedValue]:
        """Batch in the global window: the only pane, at the window's end as in a stream."""
        windows, pane = BatchGlobalTriggerDriver.GLOBAL_WINDOW_TUPLE, BatchGlobalTriggerDriver.ONLY_FIRING
        decode_key, values = self._decode_key, self._decoder.values
        for name, keys in arrived.items():
            at = whole_millis(self._window(name).last)
            for key, parts in keys.items():
                yield windowed((decode_key(key), values(parts)), at, windows, pane)

    # ---- arrival
    def _sort_in(self, blocks: Iterable[Data], old_us: int) -> Arrived:
        arrived: Arrived = {}
        last: bytes | None = None
        for name, key, count, data, times in open_blocks(blocks):
            if name != last:
                last = name
                is_late = old_us >= self._window(name).expiry
                keys = {} if is_late else arrived.setdefault(name, {})
            if is_late:
                self.dropped += count
                continue
            parts = keys.get(key)
            if parts is None:
                keys[key] = [(count, data)]
            else:
                parts.append((count, data))
            if times is not None:
                self._note_hold((name, key), times, old_us)
        return arrived

    def _note_hold(self, slot: tuple[bytes, bytes], times: tuple[int, ...], old_us: int) -> None:
        in_time = [at for at in times if at >= old_us]
        if slot in self._holds:
            in_time.append(self._holds[slot])
        if in_time:
            self._holds[slot] = self._combine(in_time)

    def _hold(self, window: _Window, key: bytes) -> int | None:
        """The timestamp combiner's result over the elements that arrived and are not late; None without any."""
        return window.last if self._combine is None else self._holds.get((window.name, key))

    def _keep(self, group: KeyGroup, window: _Window, key: bytes, parts: list[Part]) -> None:
        hold, fired, kept = self._head(group, window, key)
        count, data = joined(parts)
        self._put(group, window, key, self._combined(hold, self._hold(window, key)), window.end, fired, kept + count)
        group.append(ELEMENTS, window.name, key, data)

    def _combined(self, one: int | None, other: int | None) -> int | None:
        if one is None or other is None:
            return one if other is None else other
        return (self._combine or max)(one, other)

    # ---- firing
    def _fire(
        self, group: KeyGroup, window: _Window, key: bytes, arrived: list[Part] | None, new_us: int, *, on_time: bool
    ) -> WindowedValue:
        hold, fired, count = self._head(group, window, key)
        kept = group.get(ELEMENTS, window.name, key) if count else None
        parts: list[Part] = [] if kept is None else [(count, kept)]
        if arrived is not None:
            hold = self._combined(hold, self._hold(window, key))
            parts += arrived
        if window.expiry > new_us:
            if not self._accumulates:
                count = 0
                group.drop(ELEMENTS, window.name, key)
            elif arrived is not None:
                more, data = joined(arrived)
                count += more
                group.append(ELEMENTS, window.name, key, data)
            self._put(group, window, key, None, NEVER_US, fired + 1, count)
        if fired:
            pane = PaneInfo(False, False, PaneInfoTiming.LATE, fired, fired)
        else:
            pane = _ON_TIME if on_time else _FIRST_BUT_LATE
        at = whole_millis(window.last if hold is None else hold)
        return windowed((self._decode_key(key), self._decoder.values(parts)), at, (window.window,), pane)

    def _collect(self, group: KeyGroup, new_us: int) -> None:
        for name in group.take_fresh_windows():
            group.expiries.set(name, self._window(name).expiry)
        for name in group.expiries.take_due(new_us):
            group.drop_window(PANE, name)
            group.drop_window(ELEMENTS, name)

    # ---- state
    def _head(self, group: KeyGroup, window: _Window, key: bytes) -> tuple[int | None, int, int]:
        """-> (timestamp that the pane will have, or None; panes fired; elements kept)."""
        head = group.get(PANE, window.name, key)
        if head is None:
            return None, 0, 0
        hold, _, _, fired, count = _HEAD.unpack(head)
        return None if hold == MAX_US else hold + 1, fired, count

    def _put(
        self, group: KeyGroup, window: _Window, key: bytes, hold: int | None, event: int, fired: int, count: int
    ) -> None:
        # Beam holds the watermark just before the pane's timestamp, so that the pane is not late downstream.
        held = MAX_US if hold is None else hold - 1
        group.put(PANE, window.name, key, _HEAD.pack(held, event, NEVER_US, fired, count))

    def _window(self, name: bytes) -> _Window:
        known = self._windows.get(name)
        if known is None:
            if len(self._windows) >= _KNOWN_WINDOWS:
                self._windows.clear()
            window = self._window_impl.decode_nested(name)
            end = micros(window.end)
            last = last_us(window)
            known = self._windows[name] = _Window(name, window, end, last, expiry_us(last, self._lateness))
        return known
