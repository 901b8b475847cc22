"""Key groups in memory and on disk: kept in a worker between epochs, written as one file a task and epoch."""

from __future__ import annotations

from collections.abc import Mapping

from spark_jobs.beam_runner.checkpoint.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame, KeyGroupMeta
from spark_jobs.beam_runner.errors import way_back
from spark_jobs.beam_runner.keyed.state import KeyGroup, encode_frame

SNAPSHOT_AFTER_FRAMES = 8  # a chain is read whole by a cold worker: keep it short


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
            dirty = state.dirty
            if not dirty:
                chains[stage, group] = chain
                if chain:
                    self._cache.keep(self._checkpoint, stage, group, chain[-1], state)
                continue
            if not state.entries:
                chains[stage, group] = ()
                continue
            # A snapshot as soon as it costs no more than the delta, or the chain gets long.
            snapshot = len(chain) >= SNAPSHOT_AFTER_FRAMES or dirty >= state.entries
            frame = encode_frame(state.everything() if snapshot else state.changes())
            parts.append(frame)
            written.append((stage, group, chain, state, at, len(frame), snapshot))
            at += len(frame)
        if parts:
            file = self._checkpoint.write(STATE, self._epoch, "kg", b"".join(parts))
            for stage, group, chain, state, offset, length, snapshot in written:
                last = Frame(file, offset, length, snapshot)
                chains[stage, group] = (last,) if snapshot else (*chain, last)
                state.settle()
                self._cache.keep(self._checkpoint, stage, group, last, state)
        self._pending.clear()
        return chains
