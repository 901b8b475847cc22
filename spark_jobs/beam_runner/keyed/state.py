"""Keyed state: a key group holds the state, timers and panes of the keys that hash to it.

A task loads the key groups it touches from the frames that the manifest names, changes them in memory, and writes
what changed as one file per task and epoch. The name of a group's last frame is the version of its state: a worker
that has an older version in memory reads only the frames that came after.

Entries are kept by kind, window and key, so that an expired window goes at once. Frame: magic, CRC-32 of the body,
sections. Section: kind, what to do, number of entries, window; entries. Values are encoded by coders, never pickled
objects. Appending to a value writes only what is new.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from spark_jobs.beam_runner.clock import MAX_US, NEVER_US
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.keyed.schedule import Schedule

MAGIC = b"KGF2"
_HEAD = struct.Struct("<4sI")
_SECTION = struct.Struct("<BBII")
_LENGTH = struct.Struct("<I")
TIMES = struct.Struct("<qqq")  # hold, next event time, next processing time: head of timers and panes

USER, TIMER, PANE, ELEMENTS = 0, 1, 2, 3  # kinds of entries
KINDS = (USER, TIMER, PANE, ELEMENTS)
TIMED = frozenset([TIMER, PANE])  # their values begin with TIMES
_PUT, _APPEND, _DROP, _DROP_WINDOW = 0, 1, 2, 3


Table = dict[bytes, bytes]  # encoded key -> encoded value
Slot = tuple[bytes, bytes]  # window, key
Section = tuple[int, int, bytes, list[tuple[bytes, bytes]]]  # kind, what to do, window, (key, bytes)


class Times:
    """When the timers or panes of a key group want something."""

    def __init__(self) -> None:
        self.holds: Schedule[Slot] = Schedule(MAX_US)
        self.events: Schedule[Slot] = Schedule(NEVER_US)
        self.reals: Schedule[Slot] = Schedule(NEVER_US)

    def put(self, slot: Slot, value: bytes) -> None:
        hold, event, real = TIMES.unpack_from(value)
        self.holds.set(slot, hold)
        self.events.set(slot, event)
        self.reals.set(slot, real)

    def drop(self, slot: Slot) -> None:
        for schedule in (self.holds, self.events, self.reals):
            schedule.discard(slot)


@dataclass
class _Changes:
    """What happened to one table since the last write. A key with a list got these bytes appended, no more."""

    dropped_window: bool = False
    keys: dict[bytes, list[bytes] | None] = field(default_factory=dict)


class KeyGroup:
    """Encoded entries, what changed since the last write, and indexes over them.

    `expiries` is for the stage to fill: it alone can tell when a window expires. `take_fresh_windows` says which
    windows it has not been told of.
    """

    def __init__(self) -> None:
        self._tables: tuple[dict[bytes, Table], ...] = tuple({} for _ in KINDS)
        self._changes: dict[tuple[int, bytes], _Changes] = {}
        self._times: dict[int, Times] = {}
        self._fresh_windows: dict[bytes, None] = {}
        self.expiries: Schedule[bytes] = Schedule(NEVER_US)
        self.entries = 0

    # ---- reading
    def get(self, kind: int, window: bytes, key: bytes) -> bytes | None:
        table = self._tables[kind].get(window)
        return None if table is None else table.get(key)

    def table(self, kind: int, window: bytes = b"") -> Mapping[bytes, bytes]:
        return self._tables[kind].get(window, {})

    def windows(self, kind: int) -> list[bytes]:
        return list(self._tables[kind])

    def times(self, kind: int) -> Times:
        """Kept up to date by `put` and `drop` once it has been asked for."""
        times = self._times.get(kind)
        if times is None:
            times = self._times[kind] = Times()
            for window, table in self._tables[kind].items():
                for key, value in table.items():
                    times.put((window, key), value)
        return times

    def take_fresh_windows(self) -> Iterable[bytes]:
        fresh, self._fresh_windows = self._fresh_windows, {}
        return fresh

    # ---- writing
    def put(self, kind: int, window: bytes, key: bytes, value: bytes) -> None:
        self._set(kind, window, key, value)
        self._changes_of(kind, window).keys[key] = None

    def append(self, kind: int, window: bytes, key: bytes, more: bytes) -> None:
        """Adds to the end of a value, or begins one."""
        if kind in TIMED:
            raise ValueError("Values with times are put whole.")
        old = self.get(kind, window, key)
        changed = self._changes_of(kind, window).keys
        if old is None:
            changed[key] = None
        elif key not in changed:
            changed[key] = [more]
        else:
            parts = changed[key]
            if parts is not None:
                parts.append(more)
        self._set(kind, window, key, more if old is None else old + more)

    def drop(self, kind: int, window: bytes, key: bytes) -> None:
        if self._remove(kind, window, key):
            self._changes_of(kind, window).keys[key] = None

    def drop_window(self, kind: int, window: bytes) -> None:
        if self._remove_window(kind, window):
            self._changes[kind, window] = _Changes(dropped_window=True)

    @property
    def dirty(self) -> int:
        """How many entries changed since the last write."""
        return sum(len(c.keys) + c.dropped_window for c in self._changes.values())

    def settle(self) -> None:
        """What changed has been written."""
        self._changes.clear()

    # ---- frames
    def changes(self) -> Iterator[Section]:
        for (kind, window), changes in self._changes.items():
            table = self._tables[kind].get(window, {})
            if changes.dropped_window:
                yield kind, _DROP_WINDOW, window, []
            sections: dict[int, list[tuple[bytes, bytes]]] = {_DROP: [], _PUT: [], _APPEND: []}
            for key, parts in changes.keys.items():
                value = table.get(key)
                if value is None:
                    sections[_DROP].append((key, b""))
                elif parts is None:
                    sections[_PUT].append((key, value))
                else:
                    sections[_APPEND].append((key, b"".join(parts)))
            for what, entries in sections.items():
                if entries:
                    yield kind, what, window, entries

    def everything(self) -> Iterator[Section]:
        for kind, tables in enumerate(self._tables):
            for window, table in tables.items():
                yield kind, _PUT, window, list(table.items())

    def apply(self, frame: bytes, where: str, hint: str | None = None) -> None:
        """Adds a frame's entries. Raises CheckpointError if its bytes are not what was written."""
        self._times.clear()
        for kind, what, window, entries in decode_frame(frame, where, hint):
            if what == _DROP_WINDOW:
                self._remove_window(kind, window)
            for key, value in entries:
                if what == _DROP:
                    self._remove(kind, window, key)
                elif what == _PUT:
                    self._set(kind, window, key, value)
                else:
                    self._set(kind, window, key, (self.get(kind, window, key) or b"") + value)

    # ---- tables
    def _changes_of(self, kind: int, window: bytes) -> _Changes:
        changes = self._changes.get((kind, window))
        if changes is None:
            changes = self._changes[kind, window] = _Changes()
        return changes

    def _set(self, kind: int, window: bytes, key: bytes, value: bytes) -> None:
        table = self._tables[kind].get(window)
        if table is None:
            table = self._tables[kind][window] = {}
            self._fresh_windows[window] = None
        self.entries += key not in table
        table[key] = value
        if kind in self._times:
            self._times[kind].put((window, key), value)

    def _remove(self, kind: int, window: bytes, key: bytes) -> bool:
        table = self._tables[kind].get(window)
        if table is None or table.pop(key, None) is None:
            return False
        self.entries -= 1
        if not table:
            del self._tables[kind][window]
            self._forget_window(window)
        if kind in self._times:
            self._times[kind].drop((window, key))
        return True

    def _remove_window(self, kind: int, window: bytes) -> bool:
        table = self._tables[kind].pop(window, None)
        if table is None:
            return False
        self.entries -= len(table)
        if kind in self._times:
            for key in table:
                self._times[kind].drop((window, key))
        self._forget_window(window)
        return True

    def _forget_window(self, window: bytes) -> None:
        if not any(window in tables for tables in self._tables):
            self.expiries.discard(window)
            self._fresh_windows.pop(window, None)


def encode_frame(sections: Iterable[Section]) -> bytes:
    parts: list[bytes] = []
    pack = _LENGTH.pack
    for kind, what, window, entries in sections:
        parts += (_SECTION.pack(kind, what, len(window), len(entries)), window)
        for key, value in entries:
            parts += (pack(len(key)), key)
            if what != _DROP:
                parts += (pack(len(value)), value)
    body = b"".join(parts)
    return _HEAD.pack(MAGIC, zlib.crc32(body)) + body


def decode_frame(frame: bytes, where: str, hint: str | None = None) -> Iterator[Section]:
    """Raises CheckpointError before it yields anything, if the frame is not what was written."""
    if len(frame) < _HEAD.size:
        raise CheckpointError(f"State frame {where} is cut short.", hint=hint)
    magic, checksum = _HEAD.unpack_from(frame)
    if magic != MAGIC and magic[:3] == MAGIC[:3]:
        raise CheckpointError(
            f"State frame {where} has format {magic.decode('ascii', 'replace')}; this version reads {MAGIC.decode()}.",
            hint="Finish the job with the version that wrote it, or start on a new checkpoint.",
        )
    if magic != MAGIC or zlib.crc32(memoryview(frame)[_HEAD.size :]) != checksum:
        raise CheckpointError(f"State frame {where} is damaged.", hint=hint)
    return _sections(frame)


def _sections(frame: bytes) -> Iterator[Section]:
    at = _HEAD.size

    def take() -> bytes:
        nonlocal at
        (length,) = _LENGTH.unpack_from(frame, at)
        at += _LENGTH.size + length
        return frame[at - length : at]

    while at < len(frame):
        kind, what, window_length, count = _SECTION.unpack_from(frame, at)
        at += _SECTION.size + window_length
        window = frame[at - window_length : at]
        yield kind, what, window, [(take(), b"" if what == _DROP else take()) for _ in range(count)]
