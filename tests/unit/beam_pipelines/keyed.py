"""State, timers and a bundle for a stateful DoFn that is called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.coders import decode_batch, encode_batch


class StoredCell:
    """A state cell that keeps bytes, as a runner does."""

    def __init__(self) -> None:
        self.stored: bytes | None = None

    def read(self) -> pa.RecordBatch | None:
        return None if self.stored is None else decode_batch(self.stored)

    def write(self, batch: pa.RecordBatch) -> None:
        self.stored = encode_batch(batch)

    def clear(self) -> None:
        self.stored = None


class EventTimer:
    """At most one firing is set, in milliseconds."""

    def __init__(self) -> None:
        self.at_ms: int | None = None

    def set(self, at: Timestamp) -> None:
        self.at_ms = at.micros // 1000


class Harness:
    """One key of a stateful DoFn with an event-time timer. Outputs are batches, with their tag if they have one."""

    def __init__(self, dofn: Any, on_timer: Callable[..., Iterable[Any] | None], key: Any) -> None:
        self.dofn, self.on_timer, self.key = dofn, on_timer, key
        self.cell, self.timer, self.firings = StoredCell(), EventTimer(), 0
        dofn.setup()

    def bundle(self, *batches: pa.RecordBatch, watermark_ms: int | None = None) -> list[pa.RecordBatch]:
        """Elements, then what the watermark makes due, then the end of the bundle."""
        outputs: list[Any] = []
        self.dofn.start_bundle()
        for batch in batches:
            outputs += self.dofn.process((self.key, batch), self.cell, self.timer) or ()
        while watermark_ms is not None and self.timer.at_ms is not None and self.timer.at_ms <= watermark_ms:
            fired = Timestamp(micros=self.timer.at_ms * 1000)
            self.timer.at_ms, self.firings = None, self.firings + 1
            outputs += self.on_timer(self.key, fired, self.cell, self.timer) or ()
        if hasattr(self.dofn, "finish_bundle"):
            outputs += self.dofn.finish_bundle() or ()
        return list(_batches(outputs))


def _batches(outputs: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    for output in outputs:
        value = output.value if isinstance(output, TaggedOutput) else output
        yield value.value if isinstance(value, WindowedValue) else value
