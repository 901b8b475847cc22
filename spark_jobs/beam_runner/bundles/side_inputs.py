"""Side inputs: encoded elements -> what Beam's state API answers for each access pattern, window and key.

Each task writes what it adds to a side input as one *part*. A table is built from the parts by every process that
reads the side input, and kept from epoch to epoch: only new parts are decoded.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from apache_beam.coders import coder_impl
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.pvalue import SideInputData
from apache_beam.utils.windowed_value import PaneInfoTiming

from spark_jobs.beam_runner.beam_internals import PipelineContext, common_urns, last_us
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from spark_jobs.beam_runner.planning.plan import LAST_OF_KEY, LATEST_PANE, SidePlan

INLINE_BYTES = 1 << 20  # a larger part is written to the checkpoint by its task and does not pass the driver
_COUNT = struct.Struct(">i")


class SideTable:
    """One side input of one ParDo: its elements by window and key.

    Of a collection that fires more than once for a window, AsSingleton sees the latest pane, AsDict the last value of
    each key: a pane may hold a few of the window's keys only. The other views see all panes in their order. An element
    that no grouping has put in a pane since its WindowInto is a pane of its own if there is a trigger, as behind Beam's
    `WatchFilePattern`.
    """

    def __init__(self, plan: SidePlan, context: PipelineContext) -> None:
        data = SideInputData.from_runner_api(beam_runner_api_pb2.SideInput.FromString(plan.spec), context)
        coder = context.coders[plan.coder]
        element = coder.wrapped_value_coder
        self._keyed = data.access_pattern != common_urns.side_inputs.ITERABLE.urn
        self._by_pane, self._is_triggered = plan.view == LATEST_PANE, plan.triggered
        self._by_key = plan.view == LAST_OF_KEY and element.is_kv_coder()
        self._key_impl = element.key_coder().get_impl() if self._keyed or self._by_key else None
        self._elements = 0
        self._value_impl = (element.value_coder() if self._keyed else element).get_impl()
        self._windowed_impl = coder.get_impl()
        self._window_impl = coder.window_coder.get_impl()
        self._window_of = data.window_mapping_fn
        self._parts: dict[str, int] = {}  # -> the greatest end of its windows
        self._windows: dict[bytes, dict[bytes, _Values]] = {}
        self._ends: dict[bytes, int] = {}  # of the windows

    def hold(
        self,
        parts: Iterable[SidePart],
        read: Callable[[SidePart], Iterable[bytes]],
        folded: Mapping[str, frozenset[str]],
        left_us: int,
    ) -> None:
        """Makes the table hold exactly `parts`, as far as windows are concerned that end at `left_us` or later.

        `folded`: parts that show what other parts did, by their names.
        """
        wanted = {part.name: part for part in parts}
        for name, others in folded.items():
            if name in wanted and others <= self._parts.keys():
                self._parts = {known: end for known, end in self._parts.items() if known not in others}
                self._parts[name] = wanted[name].end_us
        gone = self._parts.keys() - wanted.keys()
        if any(self._parts[name] >= left_us for name in gone):  # an epoch was run again
            self._parts, self._windows, self._ends = {}, {}, {}
        elif gone:  # expired
            self._parts = {name: end for name, end in self._parts.items() if name in wanted}
            for window in [window for window, end in self._ends.items() if end < left_us]:
                del self._windows[window], self._ends[window]
        for name, part in wanted.items():
            if name not in self._parts:
                for chunk in read(part):
                    self._add(chunk)
                self._parts[name] = part.end_us

    def _add(self, chunk: bytes) -> None:
        for _, element in self.decode(chunk):
            key, version = self.slot(element)
            value = element.value[1] if self._keyed else element.value
            for window in element.windows:
                name = self.encode_window(window)
                if name not in self._windows:
                    self._windows[name] = defaultdict(_Values)
                    self._ends[name] = last_us(window)
                self._windows[name][key].add(self._value_impl, value, version)

    def decode(self, chunk: bytes) -> Iterator[tuple[bytes, Any]]:
        """Each element as it is encoded, and as a windowed value."""
        stream = coder_impl.create_InputStream(chunk)
        at = 0
        while stream.size() > 0:
            element = self._windowed_impl.decode_from_stream(stream, True)
            end = len(chunk) - stream.size()
            yield chunk[at:end], element
            at = end

    def slot(self, element: Any) -> tuple[bytes, int]:
        """(key, version): of the elements of a window that have one key only those of the greatest version are seen."""
        key = self._key_impl.encode_nested(element.value[0]) if self._key_impl is not None else b""
        is_alone = self._is_triggered and element.pane_info.timing == PaneInfoTiming.UNKNOWN
        if self._by_pane and not is_alone:
            return key, element.pane_info.index
        self._elements += 1
        return key, self._elements if self._by_key or self._by_pane else 0

    def encode_window(self, window: Any) -> bytes:
        encoded: bytes = self._window_impl.encode(window)
        return encoded

    def window_for(self, main_window: Any) -> Any:
        """The side input's window that an element in `main_window` sees."""
        return self._window_of(main_window)

    def has(self, window: Any) -> bool:
        """Whether any element of the side input is in its `window`."""
        return self.encode_window(window) in self._windows

    def answer(self, kind: str, request: Any) -> bytes:
        """Encoded values, for a StateKey of type `kind` (iterable_side_input, multimap_side_input, ...)."""
        keys = self._windows.get(request.window, {})
        if kind == "multimap_keys_side_input":
            return b"".join(keys)
        if kind == "multimap_keys_values_side_input":
            return b"".join(key + _COUNT.pack(values.count) + values.encoded() for key, values in keys.items())
        if kind == "multimap_side_input":
            return keys[request.key].encoded() if request.key in keys else b""
        return b"".join(values.encoded() for values in keys.values())


class _Values:
    def __init__(self) -> None:
        self._version = -1
        self._clear()

    def _clear(self) -> None:
        self.count, self._stream = 0, coder_impl.create_OutputStream()

    def add(self, impl: Any, value: Any, version: int) -> None:
        if version < self._version:
            return
        if version > self._version:
            self._version = version
            self._clear()
        impl.encode_to_stream(value, self._stream, True)
        self.count += 1

    def encoded(self) -> bytes:
        return bytes(self._stream.get())


def encode_chunks(chunks: list[bytes]) -> bytes:
    return b"".join(len(c).to_bytes(8, "little") + c for c in chunks)


def decode_chunks(data: bytes) -> list[bytes]:
    chunks, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        chunks.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return chunks
