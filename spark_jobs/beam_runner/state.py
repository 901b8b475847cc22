"""Keyed state: a key group holds the state, timers and panes of the keys that hash to it.

A task loads the key groups it touches from the frames that the manifest names, changes them in memory, and writes
what changed as one file per task and epoch. The name of a group's last frame is the version of its state: a worker
that has an older version in memory reads only the frames that came after.

Frame: magic, CRC-32 of the body, entries. Entry: kind (1 byte), key length, key, value length or DELETED, value.
Values are encoded by coders, never pickled objects.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from spark_jobs.beam_runner.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.errors import CheckpointError, way_back
from spark_jobs.beam_runner.manifest import Frame, KeyGroupMeta

MAGIC = b"KGF1"
DELETED = 0xFFFFFFFF
_HEAD = struct.Struct("<4sI")
_LENGTHS = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")

USER, TIMER, PANE = 0, 1, 2  # kinds of entries

SNAPSHOT_AFTER_FRAMES = 8  # a chain is read whole by a cold worker: keep it short


@dataclass
class KeyGroup:
    """Encoded entries by kind and key, and the keys changed since the last write."""

    entries: tuple[dict[bytes, bytes], dict[bytes, bytes], dict[bytes, bytes]] = field(
        default_factory=lambda: ({}, {}, {})
    )
    dirty: set[tuple[int, bytes]] = field(default_factory=set)

    def put(self, kind: int, key: bytes, value: bytes) -> None:
        self.entries[kind][key] = value
        self.dirty.add((kind, key))

    def drop(self, kind: int, key: bytes) -> None:
        if self.entries[kind].pop(key, None) is not None:
            self.dirty.add((kind, key))

    def changes(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        for kind, key in sorted(self.dirty):
            yield kind, key, self.entries[kind].get(key)

    def everything(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        for kind, table in enumerate(self.entries):
            for key, value in table.items():
                yield kind, key, value

    def apply(self, frame: bytes, where: str, hint: str | None = None) -> None:
        """Adds a frame's entries. Raises CheckpointError if its bytes are not what was written."""
        if len(frame) < _HEAD.size:
            raise CheckpointError(f"State frame {where} is cut short.", hint=hint)
        magic, checksum = _HEAD.unpack_from(frame)
        if magic != MAGIC or zlib.crc32(memoryview(frame)[_HEAD.size :]) != checksum:
            raise CheckpointError(f"State frame {where} is damaged.", hint=hint)
        at = _HEAD.size
        while at < len(frame):
            kind, key_length = _LENGTHS.unpack_from(frame, at)
            at += _LENGTHS.size
            key = frame[at : at + key_length]
            at += key_length
            (value_length,) = _LENGTH.unpack_from(frame, at)
            at += _LENGTH.size
            if value_length == DELETED:
                self.entries[kind].pop(key, None)
            else:
                self.entries[kind][key] = frame[at : at + value_length]
                at += value_length


def encode_frame(entries: Iterator[tuple[int, bytes, bytes | None]]) -> bytes:
    parts: list[bytes] = []
    for kind, key, value in entries:
        parts += (_LENGTHS.pack(kind, len(key)), key)
        parts += (_LENGTH.pack(DELETED),) if value is None else (_LENGTH.pack(len(value)), value)
    body = b"".join(parts)
    return _HEAD.pack(MAGIC, zlib.crc32(body)) + body


class StateCache:
    """Key groups kept in a worker process between epochs, by the frame that they are at."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, int], tuple[Frame, KeyGroup]] = {}

    def take(self, checkpoint: Checkpoint, stage: str, group: int, chain: tuple[Frame, ...]) -> KeyGroup:
        """The group's state as of `chain`. It is out of the cache until `keep`: a failed bundle leaves nothing."""
        if not chain:
            self._groups.pop((checkpoint.url, stage, group), None)
            return KeyGroup()
        at, state = self._groups.pop((checkpoint.url, stage, group), (None, KeyGroup()))
        if at in chain:
            missing = chain[chain.index(at) + 1 :]
        else:
            state, missing = KeyGroup(), chain
        for frame in missing:
            if frame.snapshot:
                state = KeyGroup()
            data = checkpoint.read(STATE, frame.file, frame.offset, frame.length)
            state.apply(data, f"{checkpoint.url}/{STATE}/{frame.file}@{frame.offset}", way_back(checkpoint.url))
        return state

    def forget_stale(self, checkpoint: Checkpoint, live: Mapping[str, Mapping[int, KeyGroupMeta]]) -> None:
        """Drops what can never be caught up from: Spark does not bind a group to a process, so copies get old."""
        for (root, stage, group), (at, _) in list(self._groups.items()):
            meta = live.get(stage, {}).get(group)
            if root != checkpoint.url or meta is None or at not in meta.chain:
                del self._groups[root, stage, group]

    def keep(self, checkpoint: Checkpoint, stage: str, group: int, at: Frame, state: KeyGroup) -> None:
        self._groups[checkpoint.url, stage, group] = (at, state)


class StateWriter:
    """Collects the changed key groups of one task and epoch, and writes them as one synced file."""

    def __init__(self, checkpoint: Checkpoint, cache: StateCache, epoch: int) -> None:
        self._checkpoint, self._cache, self._epoch = checkpoint, cache, epoch
        self._pending: list[tuple[str, int, tuple[Frame, ...], KeyGroup]] = []

    def add(self, stage: str, group: int, chain: tuple[Frame, ...], state: KeyGroup) -> None:
        self._pending.append((stage, group, chain, state))

    def write(self) -> dict[tuple[str, int], tuple[Frame, ...]]:
        """-> the new chain of each group. An unchanged group keeps its chain and writes nothing."""
        chains: dict[tuple[str, int], tuple[Frame, ...]] = {}
        written: list[tuple[str, int, tuple[Frame, ...], KeyGroup, int, int, bool]] = []
        parts: list[bytes] = []
        at = 0
        for stage, group, chain, state in self._pending:
            if not state.dirty:
                chains[stage, group] = chain
                if chain:
                    self._cache.keep(self._checkpoint, stage, group, chain[-1], state)
                continue
            entries = sum(map(len, state.entries))
            if not entries:
                chains[stage, group] = ()
                continue
            # A snapshot as soon as it costs no more than the delta, or the chain gets long.
            snapshot = len(chain) >= SNAPSHOT_AFTER_FRAMES or len(state.dirty) >= entries
            frame = encode_frame(state.everything() if snapshot else state.changes())
            parts.append(frame)
            written.append((stage, group, chain, state, at, len(frame), snapshot))
            at += len(frame)
        if parts:
            file = self._checkpoint.write(STATE, self._epoch, "kg", b"".join(parts))
            for stage, group, chain, state, offset, length, snapshot in written:
                last = Frame(file, offset, length, snapshot)
                chains[stage, group] = (last,) if snapshot else (*chain, last)
                state.dirty.clear()
                self._cache.keep(self._checkpoint, stage, group, last, state)
        self._pending.clear()
        return chains
