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
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.bundles.exchange import key_group
from spark_jobs.beam_runner.keyed.values import Part

FLUSH_PAIRS, FLUSH_BYTES = 200_000, 16 << 20  # what a writer gathers before it lets go: 50 MB for all different keys

_PLAIN_WINDOWS = frozenset(["beam:coder:global_window:v1", "beam:coder:interval_window:v1"])
_NO_WINDOW = object()
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


WINDOWED = Layout()  # by key alone, as Beam's trigger driver and stateful DoFns take them


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


Run = tuple[bytes, bytes, int, bytes, tuple[int, ...] | None]  # window, key, count, data, times in microseconds


def read_block(block: bytes) -> Iterator[Run]:
    """Values of one window and key at a time, in the order in which they were written. Windows come in stretches."""
    return zip(*pickle.loads(block), strict=True)


def write_block(runs: Iterable[Run]) -> bytes:
    return pickle.dumps(tuple(map(list, zip(*runs, strict=True))), protocol=5)


def runs_by_key(blocks: Iterable[bytes]) -> dict[bytes, list[Part]]:
    """The values of blocks that are not laid out by window, by key."""
    arrived: dict[bytes, list[Part]] = defaultdict(list)
    for block in blocks:
        for _, key, count, data, _ in read_block(block):
            arrived[key].append((count, data))
    return arrived


class GroupingWriter:
    """Gathers pairs until `flush`, or until it holds as much as it may.

    `encode`: encodes what its reader decodes: of `by_window` the pair's value, else a windowed value with one window.
    """

    def __init__(
        self,
        layout: Layout,
        key_impl: Any,
        window_impl: Any,
        encode: Callable[[Any], bytes],
        send: Callable[[int, bytes], None],
    ) -> None:
        self._layout, self._send, self._encode = layout, send, encode
        self._by_window, self._timed = layout.by_window, layout.timed
        self._encode_key, self._encode_window = key_impl.encode_nested, window_impl.encode_nested
        self._values: dict[bytes, dict[bytes, list[bytes]]] = {}  # window -> key -> encoded values
        self._times: dict[tuple[bytes, bytes], list[int]] = {}
        self._window: Any = None  # the last one, which is often the next one too: its encoding and its table
        self._name = b""
        self._keys: dict[bytes, list[bytes]] = {}
        self._pairs = self._bytes = 0
        self.key_groups = 1

    def add(self, value: WindowedValue) -> None:
        pair = value.value
        key = self._encode_key(pair[0])
        if self._by_window:
            data = self._encode(pair[1])
            for window in value.windows:
                if window is not self._window:
                    self._turn_to(window, self._encode_window(window))
                self._keep(key, data)
                if self._timed:
                    self._times.setdefault((self._name, key), []).append(value.timestamp_micros)
        else:
            if self._window is None:
                self._turn_to(_NO_WINDOW, b"")
            if len(value.windows) == 1:
                self._keep(key, self._encode(value))
            else:
                for window in value.windows:  # one window a value: state and panes are per window
                    self._keep(key, self._encode(WindowedValue(pair, value.timestamp, (window,), value.pane_info)))
        if self._pairs >= FLUSH_PAIRS or self._bytes >= FLUSH_BYTES:
            self.flush()

    def _turn_to(self, window: Any, name: bytes) -> None:
        self._window, self._name = window, name
        self._keys = self._values.setdefault(name, {})

    def _keep(self, key: bytes, data: bytes) -> None:
        known = self._keys.get(key)
        if known is None:
            self._keys[key] = [data]
        else:
            known.append(data)
        self._pairs += 1
        self._bytes += len(data)

    def flush(self) -> None:
        """Sends what was gathered as rows (key group, block), in the order of first appearance."""
        columns: dict[int, tuple[list[Any], ...]] = {}
        groups = self.key_groups
        for window, keys in self._values.items():
            for key, values in keys.items():
                number = key_group(key, groups)
                column = columns.get(number)
                if column is None:
                    column = columns[number] = ([], [], [], [], [])
                column[0].append(window)
                column[1].append(key)
                column[2].append(len(values))
                column[3].append(values[0] if len(values) == 1 else b"".join(values))
                column[4].append(tuple(self._times[window, key]) if self._timed else None)
        self._values.clear()
        self._window = None
        self._times.clear()
        self._pairs = self._bytes = 0
        for number, column in columns.items():
            self._send(number, pickle.dumps(column, protocol=5))
