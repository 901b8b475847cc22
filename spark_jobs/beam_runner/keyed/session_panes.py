"""GroupByKey for session windows with the default trigger: merging on plain numbers, elements kept as bytes.

Panes are those of Beam's `GeneralTriggerDriver` (tests compare the two). What merging means for panes: a session that
grew is a new window, whose pane numbers begin again; elements that fall inside a session leave it the window it was.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import attrgetter

from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue
from apache_beam.utils.windowed_value import create as windowed

from spark_jobs.beam_runner.beam_internals import last_us, start_us
from spark_jobs.beam_runner.bundles.spool import Data
from spark_jobs.beam_runner.clock import MAX_US, NEVER_US, expiry_us, whole_millis
from spark_jobs.beam_runner.keyed.grouped import open_blocks
from spark_jobs.beam_runner.keyed.panes import DriverlessPanes
from spark_jobs.beam_runner.keyed.state import PANE, TIMES, KeyGroup
from spark_jobs.beam_runner.keyed.values import Part, joined

_SESSION = struct.Struct("<qqqIQI")  # start, end, hold, panes fired, elements kept, bytes of elements
_NO_HOLD = MAX_US


class _Session:
    """A session of one key, or what an epoch brought for a window that may become part of one."""

    __slots__ = ("arrived", "end", "fired", "hold", "parts", "start")

    def __init__(self, start: int, end: int, hold: int, fired: int, parts: list[Part], *, arrived: bool) -> None:
        self.start, self.end, self.hold, self.fired, self.parts = start, end, hold, fired, parts
        self.arrived = arrived


class SessionPanes(DriverlessPanes):
    """Of sessions."""

    def run(
        self, group: KeyGroup, blocks: Iterable[Data], old_us: int, new_us: int, _now_us: int
    ) -> Iterator[WindowedValue]:
        """Yields the panes as windowed (key, values). `dropped` counts what arrived too late."""
        arrived = self._sort_in(blocks, old_us)
        due = group.times(PANE).events.take_due(new_us)
        for key in dict.fromkeys([*arrived, *(key for _, key in due)]):
            stored = group.get(PANE, b"", key)
            sessions = self._merge((_decode(stored) if stored else []) + arrived.pop(key, []))
            for session in sessions:
                if session.arrived and session.end <= old_us:
                    yield self._fire(key, session, on_time=False)
            for session in sessions:
                if old_us < session.end <= new_us:
                    yield self._fire(key, session, on_time=True)
            left = [s for s in sessions if self._expiry(s) > new_us]
            if left:
                group.put(PANE, b"", key, self._encode(left, new_us))
            else:
                group.drop(PANE, b"", key)

    def times(self, group: KeyGroup) -> tuple[int, int, int]:
        """(hold, next event-time timer or expiry, next processing-time timer) of a group after `run`."""
        times = group.times(PANE)
        return times.holds.least(), times.events.least(), NEVER_US

    # ---- arrival
    def _sort_in(self, blocks: Iterable[Data], old_us: int) -> dict[bytes, list[_Session]]:
        arrived: dict[bytes, list[_Session]] = defaultdict(list)
        for name, key, count, data, times in open_blocks(blocks):
            window = self._window_impl.decode_nested(name)
            end = last_us(window) + 1
            if old_us >= expiry_us(end - 1, self._lateness):
                self.dropped += count
            else:
                hold = self._hold(times, end, old_us)
                arrived[key].append(_Session(start_us(window), end, hold, 0, [(count, data)], arrived=True))
        return arrived

    def _hold(self, times: tuple[int, ...] | None, end: int, old_us: int) -> int:
        if times is None:
            return end - 1
        return int(self._combine((at for at in times if at >= old_us), default=_NO_HOLD))

    def _merge(self, sessions: list[_Session]) -> list[_Session]:
        """As Beam's `Sessions.merge`: what overlaps becomes one. In the order of their starts."""
        merged: list[_Session] = []
        cluster: list[_Session] = []
        end = 0
        for session in sorted(sessions, key=attrgetter("start")):
            # Windows at the end of time have no length: they do not overlap, but may be the same window.
            if cluster and session.start >= end and session.start > cluster[0].start:
                merged.append(self._joined(cluster, end))
                cluster = []
            end = max(end, session.end) if cluster else session.end
            cluster.append(session)
        if cluster:
            merged.append(self._joined(cluster, end))
        return merged

    def _joined(self, cluster: list[_Session], end: int) -> _Session:
        if len(cluster) == 1:
            return cluster[0]
        start = cluster[0].start
        # A session that was there and did not grow is the same window still, and goes on counting its panes.
        fired = max((s.fired for s in cluster if (s.start, s.end) == (start, end)), default=0)
        holds = [s.hold for s in cluster if s.hold != _NO_HOLD]
        hold = _NO_HOLD if not holds else end - 1 if self._combine is None else self._combine(holds)
        parts = [part for s in cluster for part in s.parts]
        return _Session(start, end, hold, fired, parts, arrived=any(s.arrived for s in cluster))

    # ---- firing
    def _fire(self, key: bytes, session: _Session, *, on_time: bool) -> WindowedValue:
        timing = PaneInfoTiming.ON_TIME if on_time and not session.fired else PaneInfoTiming.LATE
        pane = PaneInfo(session.fired == 0, False, timing, session.fired, session.fired)
        window = IntervalWindow(Timestamp(micros=session.start), Timestamp(micros=session.end))
        at = whole_millis(session.end - 1 if session.hold == _NO_HOLD else session.hold)
        value = windowed((self._decode_key(key), self._decoder.values(session.parts)), at, (window,), pane)
        session.hold = _NO_HOLD
        session.fired += 1
        if not self._accumulates:
            session.parts = []
        return value

    def _expiry(self, session: _Session) -> int:
        return expiry_us(session.end - 1, self._lateness)

    # ---- state
    def _encode(self, sessions: list[_Session], new_us: int) -> bytes:
        hold = min(s.hold - 1 if s.hold != _NO_HOLD else MAX_US for s in sessions)
        event = min(s.end if s.end > new_us else self._expiry(s) for s in sessions)
        out = [TIMES.pack(hold, event, NEVER_US)]
        for s in sessions:
            count, data = joined(s.parts)
            out += (_SESSION.pack(s.start, s.end, s.hold, s.fired, count, len(data)), data)
        return b"".join(out)


def _decode(stored: bytes) -> list[_Session]:
    sessions: list[_Session] = []
    at = TIMES.size
    while at < len(stored):
        start, end, hold, fired, count, length = _SESSION.unpack_from(stored, at)
        at += _SESSION.size
        parts: list[Part] = [(count, stored[at : at + length])] if count else []
        sessions.append(_Session(start, end, hold, fired, parts, arrived=False))
        at += length
    return sessions
