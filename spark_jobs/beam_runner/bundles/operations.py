"""The two ends of a fused stage: Beam operations that take rows in and hand rows out, in process."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from apache_beam.coders import coder_impl
from apache_beam.coders.coders import WindowedValueCoder
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Row
from spark_jobs.beam_runner.bundles.spool import Data
from spark_jobs.beam_runner.clock import MIN_US, micros
from spark_jobs.beam_runner.keyed.combining import CombiningWriter
from spark_jobs.beam_runner.keyed.grouped import WINDOWED, GroupingWriter, Layout
from spark_jobs.beam_runner.keyed.values import packer
from spark_jobs.beam_runner.planning.plan import FORWARD, GROUP, KEYED, PUBLISH, SHUFFLE, SIDE

INPUT_URN, OUTPUT_URN = "beam_runner:input:v1", "beam_runner:output:v1"
CHUNK_BYTES = 64 << 10  # un-keyed elements leave in chunks: a row per element costs more than the element
# A shuffle spreads work, and an element may be hours of it (a restriction): the first ones leave alone, and no chunk
# is much larger than this part of what was sent before it: of all elements, or of those that came to a task.
SHARES, SHARES_OF_A_TASK = 256, 32


@dataclass(frozen=True)
class InputSpec:
    """Payload of a stage's input transform."""

    kind: str
    coder: str
    windowing: str
    grouped_coder: str | None = None  # GROUP only: coder of the elements before they were grouped
    layout: Layout = WINDOWED  # GROUP only: how the elements arrive


@dataclass(frozen=True)
class Target:
    """Where an output's elements go. `edge` for rows, `label` for side inputs and publishers."""

    kind: str
    edge: EdgeId | None = None
    label: str | None = None
    layout: Layout = WINDOWED  # GROUP only


@dataclass(frozen=True)
class OutputSpec:
    """Payload of a stage's output transform."""

    coder: str
    targets: tuple[Target, ...]
    combine_fn: bytes | None = None  # CombinePayload of a lifted combine, whose elements come before they are combined

    def edges(self, kind: str) -> list[EdgeId]:
        return [t.edge for t in self.targets if t.kind == kind and t.edge is not None]

    def labels(self, kind: str) -> list[str]:
        return [t.label for t in self.targets if t.kind == kind and t.label is not None]


class InputOperation(beam_parts.DataInputOperation):
    """Decodes rows and pushes them into the stage."""

    began: float | None = None  # monotonic time at which the element under way was pushed, while a splitter looks on

    def configure(self, spec: InputSpec, factory: Any) -> None:
        self.windowing = factory.context.windowing_strategies.get_by_id(spec.windowing)
        self.layout = spec.layout
        self.key_impl: Any = None
        if spec.kind == KEYED:
            self.key_impl = self.windowed_coder.wrapped_value_coder.key_coder().get_impl()
        elif spec.kind == GROUP:
            before = factory.get_coder(spec.grouped_coder)
            pair = before.wrapped_value_coder
            self.key_impl = pair.key_coder().get_impl()
            self.element_coder = pair.value_coder()
            self.element_impl = self.element_coder.get_impl()
            self.value_coder = WindowedValueCoder(self.element_coder, before.window_coder)

    def decode(self, chunk: Data) -> Iterator[WindowedValue]:
        """All windowed values of a chunk."""
        stream = coder_impl.create_InputStream(bytes(chunk))
        decode = self.windowed_coder_impl.decode_from_stream
        while stream.size() > 0:
            yield decode(stream, True)

    def push(self, values: Iterable[WindowedValue]) -> None:
        for value in values:
            self.index += 1
            if self.began is not None:
                self.began = time.monotonic()
            self.output(value)


class OutputOperation(beam_parts.DataOutputOperation):
    """Encodes what the stage emits into rows, chunks or descriptors, by target."""

    send: Callable[[EdgeId, int, Row], None]
    side: Callable[[str, bytes, int], None]  # label, chunk, greatest end of its elements' windows
    stage_item: Callable[[str, bytes], None]
    part = 0
    partitions = 1
    key_groups = 1

    def configure(self, spec: OutputSpec, factory: Any) -> None:
        self.lanes, self.shuffled = spec.edges(FORWARD), spec.edges(SHUFFLE)
        self.side_labels, self.publish_labels = spec.labels(SIDE), spec.labels(PUBLISH)
        self.chunked = bool(self.lanes or self.shuffled or self.side_labels)
        self.combine_fn: Any = None
        if spec.combine_fn is not None:
            self.combine_fn = beam_parts.combine_fn(spec.combine_fn, factory.context)
        self.writers = [
            self._writer(t.kind, t.layout, t.edge) for t in spec.targets if t.kind in (GROUP, KEYED) and t.edge
        ]
        self.chunk = coder_impl.create_OutputStream()
        self.side_end_us = MIN_US
        self.next_lane = self.in_chunk = self.sent = 0
        if len(self.writers) == 1 and not self.chunked and not self.publish_labels:
            self.process = self.writers[0].add  # type: ignore[method-assign]  # spares a call per element

    def _writer(self, kind: str, layout: Layout, edge: EdgeId) -> GroupingWriter:
        pair = self.windowed_coder.wrapped_value_coder
        key_impl, window_impl = pair.key_coder().get_impl(), self.windowed_coder.window_coder.get_impl()
        pack = None

        def send(group: int, block: bytes) -> None:
            self.send(edge, group, (group, b"", block))

        if kind == KEYED:
            encode = self.windowed_coder_impl.encode_nested
        elif layout.by_window:
            encode = pair.value_coder().get_impl().encode_nested
            if self.combine_fn is not None:
                return CombiningWriter(self.combine_fn, self.scoped_process_state, key_impl, window_impl, encode, send)
            pack = packer(pair.value_coder())
        else:
            encode_value = WindowedValueCoder(pair.value_coder(), self.windowed_coder.window_coder).get_impl()

            def encode(value: WindowedValue) -> bytes:
                encoded: bytes = encode_value.encode_nested(value.with_value(value.value[1]))
                return encoded

        return GroupingWriter(layout, key_impl, window_impl, encode, send, pack)

    def setup(self, data_sampler: Any = None) -> None:
        super().setup(data_sampler)
        if self.combine_fn is not None:
            with self.scoped_start_state:
                self.combine_fn.setup()

    def teardown(self) -> None:
        super().teardown()
        if self.combine_fn is not None:
            with self.scoped_finish_state:
                self.combine_fn.teardown()

    def start(self) -> None:
        super().start()
        self.next_lane = self.part  # per bundle, so that a replay routes alike
        self.in_chunk = self.sent = 0
        self.shares = max(SHARES, SHARES_OF_A_TASK * self.partitions)
        for writer in self.writers:
            writer.key_groups = self.key_groups

    def process(self, value: WindowedValue) -> None:
        for writer in self.writers:
            writer.add(value)
        if self.chunked:
            self.windowed_coder_impl.encode_to_stream(value, self.chunk, True)
            if self.side_labels:
                self.side_end_us = max(self.side_end_us, *(micros(w.max_timestamp()) for w in value.windows))
            self.in_chunk += 1
            is_full = self.shuffled and self.in_chunk > self.sent // self.shares
            if is_full or self.chunk.size() >= CHUNK_BYTES:
                self._flush()
        for label in self.publish_labels:
            self.stage_item(label, value.value)

    def _flush(self) -> None:
        if not self.chunk.size():
            return
        data = self.chunk.get()
        self.chunk = coder_impl.create_OutputStream()
        for edge in self.lanes:
            self.send(edge, self.part, (self.part, b"", data))
        for edge in self.shuffled:
            self.send(edge, self.next_lane, (self.next_lane, b"", data))
        self.next_lane += 1
        self.sent += self.in_chunk
        self.in_chunk = 0
        for label in self.side_labels:
            self.side(label, data, self.side_end_us)
        self.side_end_us = MIN_US

    def finish(self) -> None:
        beam_parts.Operation.finish(self)
        self._flush()
        for writer in self.writers:
            writer.flush()


def _builder(operation_class: type) -> Callable[..., Any]:
    def build(payload: bytes, factory: Any, **kwargs: Any) -> Any:
        spec = pickle.loads(payload)
        operation = operation_class(windowed_coder=factory.get_coder(spec.coder), **kwargs)
        operation.configure(spec, factory)
        return operation

    return build


beam_parts.register_operation(INPUT_URN, _builder(InputOperation))
beam_parts.register_operation(OUTPUT_URN, _builder(OutputOperation))
