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
from spark_jobs.beam_runner.bundles.spool import Data, Spool
from spark_jobs.beam_runner.keyed.values import Part

OPEN_BYTES = 64 << 20  # of one key group, that a reader holds
HELD_BYTES = 64 << 20  # what a writer gathers before it lets go, at the prices below
KEY_BYTES, PAIR_BYTES = 200, 40  # a key with its list; a value in it, if it is small
ENCODED_COPIES = 3  # encoded values are joined and packed when they leave
# Of these types a key stands for itself until it leaves. Equal keys of one type encode alike; of others they may not
# (1 and 1.0), and are told apart by their encoding. Not bytes: encodings are bytes.
OWN_NAMES = frozenset([int, str])
_Name = int | str | bytes

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


# window, key, count, data, times in microseconds
Run = tuple[bytes, bytes, int, Data, tuple[int, ...] | None]


def read_block(block: Data) -> Iterator[Run]:
    """Values of one window and key at a time, in the order in which they were written. Windows come in stretches."""
    return zip(*pickle.loads(bytes(block)), strict=True)


def write_block(runs: Iterable[Run]) -> bytes:
    return pickle.dumps(tuple(map(list, zip(*runs, strict=True))), protocol=5)


def open_blocks(blocks: Iterable[Data]) -> Iterator[Run]:
    """The runs of blocks that are open at the same time: data beyond OPEN_BYTES goes to a file, run by run."""
    room, spool = OPEN_BYTES, Spool(0)
    for block in blocks:
        room -= len(block)
        if room >= 0:
            yield from read_block(block)
        else:
            for window, key, count, data, times in read_block(block):
                yield window, key, count, spool.keep(data), times


def runs_by_key(blocks: Iterable[Data]) -> dict[bytes, list[Part]]:
    """The values of blocks that are not laid out by window, by key."""
    arrived: dict[bytes, list[Part]] = defaultdict(list)
    for _, key, count, data, _ in open_blocks(blocks):
        arrived[key].append((count, data))
    return arrived


def _pack_encoded(values: list[bytes]) -> Part:
    return len(values), values[0] if len(values) == 1 else b"".join(values)


class GroupingWriter:
    """Gathers pairs until `flush`, or until it holds as much as it may.

    `encode`: encodes what its reader decodes: of `by_window` the pair's value, else a windowed value with one window.
    `pack`: does the same with the values of a key when they leave. Of `by_window`, for values that are small and never
    change.
    """

    def __init__(
        self,
        layout: Layout,
        key_impl: Any,
        window_impl: Any,
        encode: Callable[[Any], bytes],
        send: Callable[[int, bytes], None],
        pack: Callable[[list[Any]], Part] | None = None,
    ) -> None:
        self._send, self._encode, self._timed = send, encode, layout.timed
        self._is_late, self._pack = pack is not None, pack or _pack_encoded
        self._encode_key, self._encode_window = key_impl.encode_nested, window_impl.encode_nested
        self._values: dict[bytes, dict[_Name, list[Any]]] = {}  # window -> key -> values
        self._times: dict[tuple[bytes, _Name], list[int]] = {}
        self._window: Any = None  # the last one, which is often the next one too: its encoding and its table
        self._name = b""
        self._keys: dict[_Name, list[Any]] = {}
        self._room = HELD_BYTES
        self.key_groups = 1
        self.add = self._add_by_window if layout.by_window else self._add_windowed

    def _add_by_window(self, value: WindowedValue) -> None:
        key, item = value.value
        name = key if type(key) in OWN_NAMES else self._encode_key(key)
        if self._is_late:
            self._room -= PAIR_BYTES
        else:
            item = self._encode(item)
            self._room -= PAIR_BYTES + ENCODED_COPIES * len(item)
        for window in value.windows:
            if window is not self._window:
                self._turn_to(window, self._encode_window(window))
            values = self._keys.get(name)
            if values is None:
                self._keys[name] = [item]
                self._room -= KEY_BYTES
            else:
                values.append(item)
            if self._timed:
                self._times.setdefault((self._name, name), []).append(value.timestamp_micros)
        if self._room < 0:
            self.flush()

    def _add_windowed(self, value: WindowedValue) -> None:
        key = value.value[0]
        name = key if type(key) in OWN_NAMES else self._encode_key(key)
        if self._window is None:
            self._turn_to(_NO_WINDOW, b"")
        values = self._keys.get(name)
        if values is None:
            values = self._keys[name] = []
            self._room -= KEY_BYTES
        if len(value.windows) == 1:
            data = self._encode(value)
            values.append(data)
            self._room -= PAIR_BYTES + ENCODED_COPIES * len(data)
        else:
            for window in value.windows:  # one window a value: state and panes are per window
                data = self._encode(WindowedValue(value.value, value.timestamp, (window,), value.pane_info))
                values.append(data)
                self._room -= PAIR_BYTES + ENCODED_COPIES * len(data)
        if self._room < 0:
            self.flush()

    def _turn_to(self, window: Any, name: bytes) -> None:
        self._window, self._name = window, name
        self._keys = self._values.setdefault(name, {})

    def flush(self) -> None:
        """Sends what was gathered as rows (key group, block), in the order of first appearance."""
        columns: dict[int, tuple[list[Any], ...]] = {}
        groups, encode_key, pack = self.key_groups, self._encode_key, self._pack
        for window, keys in self._values.items():
            for name, values in keys.items():
                key = name if type(name) is bytes else encode_key(name)
                number = key_group(key, groups)
                column = columns.get(number)
                if column is None:
                    column = columns[number] = ([], [], [], [], [])
                column[0].append(window)
                column[1].append(key)
                count, data = pack(values)
                column[2].append(count)
                column[3].append(data)
                column[4].append(tuple(self._times[window, name]) if self._timed else None)
        self._values.clear()
        self._window = None
        self._times.clear()
        self._room = HELD_BYTES
        for number, column in columns.items():
            self._send(number, pickle.dumps(column, protocol=5))
