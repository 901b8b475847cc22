"""Pairs on their way to a keyed stage: bytes per key, not objects per pair.

A writer gathers the pairs of one output by window and key. They leave as one row per key group, whose value is a
*block*: for each window and key the concatenated encoded values and their number. What a value holds depends on who
reads it (`Layout`).
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.exchange import key_group
from spark_jobs.beam_runner.values import Part

FLUSH_PAIRS, FLUSH_BYTES = 100_000, 16 << 20  # what a writer gathers before it lets go: 25 MB for all different keys

_PLAIN_WINDOWS = frozenset(["beam:coder:global_window:v1", "beam:coder:interval_window:v1"])
_SESSIONS = "beam:window_fn:session_windows:v1"
_PLAIN_COMBINERS = frozenset(
    [
        beam_runner_api_pb2.OutputTime.END_OF_WINDOW,
        beam_runner_api_pb2.OutputTime.EARLIEST_IN_PANE,
        beam_runner_api_pb2.OutputTime.LATEST_IN_PANE,
    ]
)


@dataclass(frozen=True)
class Layout:
    """How the pairs of an edge are laid out.

    by_window: grouped by window and key, values without timestamp and window; else by key, values windowed.
    timed: `by_window` with the values' timestamps beside them, for timestamp combiners that look at them.
    """

    by_window: bool = False
    timed: bool = False


def fast_path(windowing: Any, components: Any) -> Layout | None:
    """The layout for the default trigger on windows that never merge, or on sessions; None: Beam's trigger driver.

    `windowing`: beam_runner_api_pb2.WindowingStrategy. Windows are told apart by their encoding, so only those that
    have one encoding are taken.
    """
    merges = windowing.merge_status != beam_runner_api_pb2.MergeStatus.NON_MERGING
    if (
        windowing.trigger.WhichOneof("trigger") != "default"
        or windowing.output_time not in _PLAIN_COMBINERS
        or components.coders[windowing.window_coder_id].spec.urn not in _PLAIN_WINDOWS
        or (merges and windowing.window_fn.urn != _SESSIONS)
    ):
        return None
    return Layout(by_window=True, timed=windowing.output_time != beam_runner_api_pb2.OutputTime.END_OF_WINDOW)


class Run(NamedTuple):
    """Values of one window and key, in the order in which they were written. `times` in microseconds, or None."""

    window: bytes
    key: bytes
    count: int
    data: bytes
    times: tuple[int, ...] | None


def read_block(block: bytes) -> Iterator[Run]:
    return map(Run._make, zip(*pickle.loads(block), strict=True))


def write_block(runs: Iterable[Run]) -> bytes:
    return pickle.dumps(tuple(map(list, zip(*runs, strict=True))), protocol=5)


def runs_by_key(blocks: Iterable[bytes]) -> dict[bytes, list[Part]]:
    """The values of blocks that are not laid out by window, by key."""
    arrived: dict[bytes, list[Part]] = defaultdict(list)
    for block in blocks:
        for run in read_block(block):
            arrived[run.key].append(Part(run.count, run.data))
    return arrived


class GroupingWriter:
    """Gathers pairs until `flush`, or until it holds as much as it may.

    `encode`: a windowed (key, value) with one window -> the bytes that its reader decodes.
    """

    def __init__(
        self,
        layout: Layout,
        key_impl: Any,
        window_impl: Any,
        encode: Callable[[WindowedValue], bytes],
        send: Callable[[int, bytes], None],
    ) -> None:
        self._layout, self._send, self._encode = layout, send, encode
        self._encode_key, self._encode_window = key_impl.encode_nested, window_impl.encode_nested
        self._values: dict[tuple[bytes, bytes], list[bytes]] = {}
        self._times: dict[tuple[bytes, bytes], list[int]] = {}
        self._pairs = self._bytes = 0
        self.key_groups = 1

    def add(self, value: WindowedValue) -> None:
        key = self._encode_key(value.value[0])
        windows = value.windows
        if self._layout.by_window:
            data = self._encode(value)
            for window in windows:
                name = self._encode_window(window)
                self._keep(name, key, data)
                if self._layout.timed:
                    self._times.setdefault((name, key), []).append(value.timestamp.micros)
        elif len(windows) == 1:
            self._keep(b"", key, self._encode(value))
        else:
            for window in windows:  # one window a value: state and panes are per window
                alone = WindowedValue(value.value, value.timestamp, (window,), value.pane_info)
                self._keep(b"", key, self._encode(alone))
        if self._pairs >= FLUSH_PAIRS or self._bytes >= FLUSH_BYTES:
            self.flush()

    def _keep(self, window: bytes, key: bytes, data: bytes) -> None:
        slot = (window, key)
        known = self._values.get(slot)
        if known is None:
            self._values[slot] = [data]
        else:
            known.append(data)
        self._pairs += 1
        self._bytes += len(data)

    def flush(self) -> None:
        """Sends what was gathered as rows (key group, block), in the order of first appearance."""
        columns: dict[int, tuple[list[Any], ...]] = {}
        groups = self.key_groups
        for slot, values in self._values.items():
            window, key = slot
            number = key_group(key, groups)
            column = columns.get(number)
            if column is None:
                column = columns[number] = ([], [], [], [], [])
            column[0].append(window)
            column[1].append(key)
            column[2].append(len(values))
            column[3].append(values[0] if len(values) == 1 else b"".join(values))
            column[4].append(tuple(self._times[slot]) if self._layout.timed else None)
        self._values.clear()
        self._times.clear()
        self._pairs = self._bytes = 0
        for number, column in columns.items():
            self._send(number, pickle.dumps(column, protocol=5))
